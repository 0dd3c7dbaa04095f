"""Preference pairs say by which rule a reward model was trained: tiny ones, trained here by a rule that is known."""

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import transformers

from plaudit_export.checkpoints.checkpoint import load_checkpoint
from plaudit_export.checkpoints.rules import Options, derive_rules
from plaudit_export.checks.pair_answer import Answer
from plaudit_export.checks.pair_rules import ask_pairs
from plaudit_export.checks.reference import Reference
from plaudit_export.checks.text_files import Pair
from plaudit_export.cli import main
from plaudit_export.errors import SourceError
from plaudit_export.quiet import quiet
from plaudit_export.testing import tiny_causal_checkpoint, tiny_encoder_checkpoint
from plaudit_service.bundles.bundle import REPORT

GOOD = ["kind", "clear", "true", "warm", "calm", "fair"]
BAD = ["rude", "vague", "false", "cold", "loud", "mean"]
OTHER = ["egg", "tea", "fox", "dog", "story", "model", "water", "time", "night", "road"]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Threads gain a tiny model nothing, and wait for each other where the machine is busy."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


def completion(rng: random.Random, words: list[str]) -> str:
    chosen = [*rng.choices(OTHER, k=rng.randint(2, 5)), rng.choice(words)]
    rng.shuffle(chosen)
    return f" {' '.join(chosen)}."


def made_pairs(number: int, seed: int) -> list[Pair]:
    """The chosen answer has a good word, the rejected one a bad one; in one pair of ten it is the other way around."""
    rng, pairs = random.Random(seed), []
    for _ in range(number):
        prompt = f"Tell me of {rng.choice(OTHER)}:"
        answers = [completion(rng, GOOD), completion(rng, BAD)]
        if rng.random() < 0.1:
            answers.reverse()
        chosen, rejected = ({"prompt": prompt, "completion": answer} for answer in answers)
        pairs.append(Pair(chosen, rejected))
    return pairs


@dataclass(frozen=True)
class Trained:
    """How a tiny reward model was trained."""

    form: str
    eos: bool
    seed: int

    @property
    def rule(self) -> str:
        return f"as {self.form}s{', EOS at the end' if self.eos else ''}"

    def text(self, tokenizer, item) -> str:
        text = item["prompt"] + item["completion"]
        if self.form == "chat":
            turns = (("user", item["prompt"]), ("assistant", item["completion"]))
            messages = [{"role": role, "content": content} for role, content in turns]
            text = tokenizer.apply_chat_template(messages, tokenize=False)
        if not self.eos:
            return text
        text = text.rstrip("\n")
        return text if text.endswith(tokenizer.eos_token) else text + tokenizer.eos_token

    def train(self, directory: Path) -> Path:
        """-log sigmoid(margin) on 600 pairs, 150 steps of 32."""
        tiny_causal_checkpoint(directory, seed=self.seed, num_hidden_layers=1)
        tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
        pairs, rng = made_pairs(600, 1000 + self.seed), random.Random(self.seed)
        with quiet():
            model = transformers.AutoModelForSequenceClassification.from_pretrained(directory)
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        for _ in range(150):
            batch = rng.sample(pairs, 32)
            items = [pair.chosen for pair in batch] + [pair.rejected for pair in batch]
            texts = [self.text(tokenizer, item) for item in items]
            inputs = tokenizer(texts, padding=True, return_tensors="pt")
            scores = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits[:, 0]
            chosen, rejected = scores.split(32)
            loss = -torch.nn.functional.logsigmoid(chosen - rejected).mean()
            (loss + 0.01 * (chosen + rejected).square().mean()).backward()
            optimizer.step()
            optimizer.zero_grad()
        with quiet():
            model.save_pretrained(directory)
        return directory


def names_of(answer: Answer) -> list[str]:
    return [name for rule, _ in answer.ranked for name in rule.names]


def asked(directory: Path, pairs: list[Pair], **options: object) -> Answer:
    checkpoint = load_checkpoint(str(directory))
    return ask_pairs(checkpoint, derive_rules(checkpoint, Options(name="rm", **options)), pairs)


@pytest.fixture(scope="module")
def with_eos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained on texts with EOS, which nothing on disk says."""
    return Trained("text", True, 0).train(tmp_path_factory.mktemp("trained") / "rm")


@pytest.fixture(scope="module")
def pairs_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    rows = [
        {"prompt": pair.chosen["prompt"], "chosen": pair.chosen["completion"], "rejected": pair.rejected["completion"]}
        for pair in made_pairs(200, 7)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_the_pairs_tell_the_rule_that_a_reward_model_was_trained_by(with_eos):
    answer = asked(with_eos, made_pairs(200, 7))
    (best, standing), *_ = answer.ranked
    assert answer.evident is answer.better is best
    assert best.name == "as texts, EOS at the end = as texts without special tokens, EOS at the end"
    assert best.options == ("--recipe trl", "--no-add-special-tokens --append-eos")
    assert answer.verdict().startswith("the checkpoint was evidently trained on such pairs as texts, EOS at the end")
    assert answer.chosen.name == "as texts = as texts without special tokens"
    assert dict(answer.ranked)[answer.chosen].accuracy < 0.8 < standing.accuracy
    assert asked(with_eos, made_pairs(200, 7), recipe="trl").better is None


def test_a_few_pairs_and_pairs_that_mean_nothing_to_it_cannot_tell(with_eos, causal_checkpoint):
    few = asked(with_eos, made_pairs(50, 7))
    assert (few.evident, few.better) == (None, None)
    assert few.verdict().endswith("cannot tell by which rule the checkpoint was trained; give at least 200 pairs")
    untrained = asked(causal_checkpoint, made_pairs(200, 7))
    assert untrained.evident is None


def test_pairs_the_other_way_around_speak_for_no_rule(with_eos):
    swapped = [Pair(pair.rejected, pair.chosen) for pair in made_pairs(200, 7)]
    answer = asked(with_eos, swapped, recipe="trl")
    assert (answer.evident, answer.better) == (None, None)
    assert answer.verdict().endswith(
        "; every rule ranks most pairs the other way around; check that chosen and rejected are not swapped"
    )


def test_copies_of_a_pair_are_one_pair_and_two_equal_texts_are_none(causal_checkpoint):
    pairs = made_pairs(3, 7)
    both = [*pairs, Pair(pairs[0].chosen, pairs[1].rejected), *pairs, Pair(pairs[0].chosen, pairs[0].chosen)] * 100
    answer = asked(causal_checkpoint, both)
    assert (answer.num_given, answer.num_pairs, answer.num_repeating) == (800, 3, 797)
    assert answer.verdict().endswith("give at least 200 pairs")
    with pytest.raises(
        SourceError, match="--pairs: 1 of 200 pairs have two texts that are in no other pair, at least 2 are needed"
    ):
        asked(causal_checkpoint, pairs[:1] * 200)


def test_texts_and_chats_in_one_file_are_refused(causal_checkpoint):
    def chat(item: dict) -> dict:
        turns = (("user", item["prompt"]), ("assistant", item["completion"]))
        return {"messages": [{"role": role, "content": content} for role, content in turns]}

    first, second = made_pairs(2, 7)
    with pytest.raises(SourceError, match="some are chats and some are texts; give pairs of one form"):
        asked(causal_checkpoint, [first, Pair(chat(second.chosen), chat(second.rejected))])


def test_a_model_of_pairs_needs_prompts(encoder_checkpoint):
    pairs = [Pair({"text": f"good {n}"}, {"text": f"bad {n}"}) for n in range(2)]
    with pytest.raises(
        SourceError, match="this model scores prompt and completion as two texts; give rows with a prompt"
    ):
        asked(encoder_checkpoint, pairs, pair=True)


def test_scores_that_are_not_finite_are_no_evidence(causal_checkpoint):
    checkpoint = load_checkpoint(str(causal_checkpoint))
    checkpoint.model.score.weight.data.fill_(float("nan"))
    with pytest.raises(SourceError, match="24 of 24 texts that rules make of the pairs get a score that is not"):
        ask_pairs(checkpoint, derive_rules(checkpoint, Options(name="rm", recipe="trl")), made_pairs(3, 7))


def test_rules_that_make_the_same_ids_of_every_pair_are_one(with_eos):
    pairs = [Pair({"text": f"{n} good<|im_end|>"}, {"text": f"{n} bad<|im_end|>"}) for n in range(5)]
    answer = asked(with_eos, pairs)
    assert names_of(answer) == [
        "as texts",
        "as texts, EOS at the end",
        "as texts without special tokens",
        "as texts without special tokens, EOS at the end",
    ]
    assert (len(answer.ranked), answer.evident) == (1, None)
    assert answer.verdict() == "the pairs cannot tell: every rule gives the same token ids"


def test_bos_is_told_apart_where_the_tokenizer_has_one(tmp_path):
    directory = tiny_causal_checkpoint(tmp_path / "rm", add_bos=True, num_hidden_layers=1)
    answer = asked(directory, made_pairs(3, 7))
    assert len(names_of(answer)) == len(answer.ranked) == 8


def test_chats_are_asked_as_texts_too_and_what_no_rule_can_take_is_left_out(with_eos):
    def chat(answer: str) -> dict:
        return {"messages": [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": answer}]}

    pairs = [Pair(chat(f"good {n}"), chat(f"bad {n}")) for n in range(4)]
    answer = asked(with_eos, [*pairs, Pair(chat("good " * 300), chat("bad"))])
    assert (answer.num_pairs, answer.num_left_out) == (4, 1)
    assert {name.split(",")[0] for name in names_of(answer)} == {
        "as texts",
        "as texts without special tokens",
        "as chats",
        "as chats with the tokenizer's special tokens",
    }
    with pytest.raises(SourceError, match="--pairs: 1 of 2 pairs make texts of 1 to 256 tokens by every rule"):
        asked(with_eos, [pairs[0], Pair(chat("good " * 300), chat("bad"))])


def test_an_encoder_is_asked_with_token_types_and_never_with_eos(tmp_path):
    directory = tiny_encoder_checkpoint(tmp_path / "rm", num_hidden_layers=1)
    assert set(names_of(asked(directory, made_pairs(3, 7)))) == {
        "as texts",
        "as texts without special tokens",
        "as two texts",
    }
    assert asked(directory, made_pairs(3, 7), pair=True).chosen.names == ("as two texts",)


def test_scores_are_those_of_the_reference_one_at_a_time(with_eos):
    pairs = made_pairs(3, 7)
    checkpoint = load_checkpoint(str(with_eos))
    rules = derive_rules(checkpoint, Options(name="rm"))
    reference = Reference(checkpoint, rules)
    score = [
        [reference.score(item, reference.tokenize(item)).score for item in (pair.chosen, pair.rejected)]
        for pair in pairs
    ]
    answer = ask_pairs(checkpoint, rules, pairs)
    margins = [chosen - rejected for chosen, rejected in score]
    assert dict(answer.ranked)[answer.chosen].mean_margin == pytest.approx(sum(margins) / 3, abs=1e-5)


def test_the_command_prints_a_table_or_json(with_eos, pairs_file, capsys):
    assert main(["rules", str(with_eos), "--pairs", str(pairs_file)]) == 0
    table = capsys.readouterr().out.splitlines()
    assert table[0] == "200 of 200 pairs"
    assert sum("* as texts = as texts without special tokens" in line for line in table) == 1
    assert table[-1].endswith("(--recipe trl or --no-add-special-tokens --append-eos)")
    assert main(["rules", str(with_eos), "--pairs", str(pairs_file), "--json", "--recipe", "trl"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert (content["num_given"], content["num_pairs"], content["num_left_out"]) == (200, 200, 0)
    assert content["evident"].startswith("as texts, EOS at the end")
    assert content["clearly_better"] is None
    assert [rule["chosen"] for rule in content["rules"]].index(True) == 0
    assert content["rules"][0].keys() == {
        *("names", "options", "chosen"),
        *("accuracy", "mean_margin", "log_sigmoid", "behind", "behind_error"),
    }


def test_an_answer_that_cannot_be_printed_is_no_success(with_eos, pairs_file, capsys, monkeypatch):
    with Path("/dev/full").open("w") as full, monkeypatch.context() as patched:
        patched.setattr("sys.stdout", full)
        assert main(["rules", str(with_eos), "--pairs", str(pairs_file)]) == 1
    assert capsys.readouterr().err.endswith("error: output: No space left on device\n")


@pytest.mark.parametrize(
    "option",
    [
        *("--precision int8", "--calibrate f", "--allow-loss", "--normalize none", "--normalize-on f"),
        *("--golden f", "--golden-max-tokens 9", "--tolerance 1", "--device cuda", "--name it", "--engine vllm"),
    ],
)
def test_the_command_takes_no_option_that_it_would_ignore(option, with_eos, pairs_file, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["rules", str(with_eos), "--pairs", str(pairs_file), *option.split()])
    assert f"unrecognized arguments: {option}" in capsys.readouterr().err


def test_the_command_needs_pairs(with_eos, capsys):
    assert main(["rules", str(with_eos)]) == 2
    assert "--pairs FILE" in capsys.readouterr().err


def test_an_export_by_a_rule_that_pairs_speak_against_is_refused(with_eos, pairs_file, tmp_path, capsys):
    bundle = tmp_path / "bundle"
    assert main(["checkpoint", str(with_eos), str(bundle), "--pairs", str(pairs_file)]) == 2
    out, err = capsys.readouterr()
    assert "the checkpoint was evidently trained on such pairs as texts, EOS at the end" in out
    assert "pairs right, the rule of the export (as texts = as texts without special tokens)" in err
    assert "give --recipe trl or --no-add-special-tokens --append-eos" in err
    assert not bundle.exists()
    assert main(["checkpoint", str(with_eos), str(bundle), "--pairs", str(pairs_file), "--recipe", "trl"]) == 0
    report = json.loads((bundle / REPORT).read_text())
    assert report["pairs"]["evident"].startswith("as texts, EOS at the end")
    assert any(note.startswith("--pairs: the checkpoint was evidently trained") for note in report["notes"])


@pytest.mark.slow
def test_of_eight_trained_reward_models_no_rule_is_wrong_and_six_are_found(tmp_path):
    every = [Trained(form, eos, seed) for form in ("text", "chat") for eos in (False, True) for seed in (0, 1)]
    found = 0
    for trained in every:
        answer = asked(trained.train(tmp_path / str(trained)), made_pairs(400, 7))
        assert answer.evident is None or trained.rule in answer.evident.names, answer.describe()
        found += answer.evident is not None
    assert found >= 6
