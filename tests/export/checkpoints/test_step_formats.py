"""Reward models of steps and of tokens, as their trainers leave them on disk, at every position.

The values that are compared with come from transformers' own classes, or from the decoder alone with the trainer's
computation written again; of the package under test nothing takes part in them.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from plaudit_export.checkpoints.rules import Options
from plaudit_export.errors import SourceError
from plaudit_export.exporter import export_checkpoint
from plaudit_export.quiet import quiet
from plaudit_export.testing import tiny_causal_checkpoint
from plaudit_service import Scorer
from plaudit_service.bundles.bundle import Head, load_bundle

PROMPT = "How do I add 7 and 8?\nThink, 教えて 👍🏽.\n"
STEPS = ["First 7 + 3 is 10.", "  Then 5 are left ", "", "So it is 15. 😀"]


@dataclass
class Made:
    """A checkpoint, what is said of it, and what its trainer's code computes."""

    path: Path
    options: Options
    ids: list[int]
    ends: list[int]
    values: list[float]


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("decoder") / "tiny"
    return tiny_causal_checkpoint(path, architecture="qwen2", num_hidden_layers=1, max_position_embeddings=200)


def copied(decoder: Path, path: Path, **config: Any) -> Path:
    shutil.copytree(decoder, path)
    fields = json.loads((path / "config.json").read_text())
    for name in ("id2label", "label2id", "num_labels"):
        fields.pop(name, None)
    (path / "config.json").write_text(json.dumps(fields | config))
    return path


def head_weights(rows: int, columns: int, seed: int, scale: float = 1.0) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * scale


def tokenizer_of(path: Path) -> Any:
    with quiet():
        return transformers.AutoTokenizer.from_pretrained(path)


def write_token_classifier(decoder: Path, path: Path, num_labels: int) -> Any:
    """As `AutoModelForTokenClassification` saves it; the model."""
    with quiet():
        model = transformers.AutoModelForTokenClassification.from_pretrained(
            decoder, num_labels=num_labels, ignore_mismatched_sizes=True
        ).eval()
        model.score.weight.data = head_weights(num_labels, model.config.hidden_size, 1, 0.3)
        model.score.bias.data = head_weights(1, num_labels, 2)[0]
        model.save_pretrained(path)
        tokenizer_of(decoder).save_pretrained(path)
    return model


def trl(decoder: Path, path: Path) -> Made:
    """TRL 1.11, `PRMTrainer.tokenize_row`, and the loss's softmax at the labels that are not -100."""
    model, tokenizer = write_token_classifier(decoder, path, 2), tokenizer_of(decoder)
    prompt_ids = tokenizer(PROMPT, add_special_tokens=False)["input_ids"]
    separator_ids = tokenizer.encode("\n", add_special_tokens=False)
    completions_ids = [tokenizer(step, add_special_tokens=False)["input_ids"] + separator_ids for step in STEPS]
    labels = [[-100] * (len(ids) - 1) + [1] for ids in completions_ids]
    ids = [tokenizer.bos_token_id, *prompt_ids, *(one for step in completions_ids for one in step)]
    labels = [-100] * (1 + len(prompt_ids)) + [one for step in labels for one in step]
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0]
    values = torch.softmax(logits.double(), dim=-1)[:, 1].tolist()
    return Made(path, Options(step_end="\n"), ids, [at for at, label in enumerate(labels) if label != -100], values)


def qwen_prm(decoder: Path, path: Path) -> Made:
    """Qwen2.5-Math-PRM's class and the code of its card; `<extra_0>` is a token of the tokenizer's own."""
    copied(
        decoder,
        path,
        architectures=["Qwen2ForProcessRewardModel"],
        auto_map={"AutoModel": "modeling_qwen2_rm.Qwen2ForProcessRewardModel"},
    )
    tokenizer = tokenizer_of(decoder)
    tokenizer.add_tokens([transformers.AddedToken("<extra_0>", special=True)])
    tokenizer.save_pretrained(path)
    weights = load_file(path / "model.safetensors")
    del weights["score.weight"]
    size = weights["model.norm.weight"].shape[0]
    first, second = head_weights(size, size, 3, size**-0.5), head_weights(2, size, 4, 0.3)
    biases = head_weights(1, size, 5)[0], head_weights(1, 2, 6)[0]
    head = {"score.0.weight": first, "score.0.bias": biases[0], "score.2.weight": second, "score.2.bias": biases[1]}
    save_file(weights | head, path / "model.safetensors", metadata={"format": "pt"})
    chat = [
        {"role": "user", "content": PROMPT},
        {"role": "assistant", "content": "<extra_0>".join(STEPS) + "<extra_0>"},
    ]
    ids = tokenizer.encode(tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=False))
    with quiet(), torch.no_grad():
        base = transformers.AutoModel.from_pretrained(decoder).eval()
        hidden = base(torch.tensor([ids])).last_hidden_state[0]
    logits = torch.relu(hidden @ first.T + biases[0]) @ second.T + biases[1]
    ends = [at for at, one in enumerate(ids) if one == tokenizer.encode("<extra_0>")[0]]
    return Made(path, Options(), ids, ends, torch.softmax(logits.double(), dim=-1)[:, 1].tolist())


def math_shepherd(decoder: Path, path: Path) -> Made:
    """The code of Math-Shepherd's card: softmax over the logits of two tokens at the step tag."""
    with quiet():
        model = transformers.AutoModelForCausalLM.from_pretrained(decoder).eval()
        tokenizer = tokenizer_of(decoder)
        model.save_pretrained(path)
        tokenizer.save_pretrained(path)
    good, bad, tag = (tokenizer.get_vocab()[token] for token in ("+", "-", "~"))
    ids = tokenizer.encode(PROMPT + "".join(f"{step} ~\n" for step in STEPS))
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0][:, [good, bad]]
    values = logits.double().softmax(dim=-1)[:, 0].tolist()
    options = Options(token_logits=(Head(name="-", weight=-1.0), Head(name="+")), step_token="~", step_end=" ~\n")
    return Made(path, options, ids, [at for at, one in enumerate(ids) if one == tag], values)


def critic(decoder: Path, path: Path) -> Made:
    """verl's critic: one label for each token."""
    model, tokenizer = write_token_classifier(decoder, path, 1), tokenizer_of(decoder)
    ids = tokenizer(PROMPT + "".join(STEPS))["input_ids"]
    with torch.no_grad():
        values = model(torch.tensor([ids])).logits[0, :, 0].double().tolist()
    return Made(path, Options(), ids, [len(ids) - 1], values)


def assert_close(served: list[float], references: list[float]) -> None:
    assert len(served) == len(references)
    assert all(abs(a - b) <= 1e-5 * max(1, abs(b)) for a, b in zip(served, references, strict=True))


@pytest.mark.parametrize(
    ("make", "item"),
    [
        (trl, {"prompt": PROMPT, "steps": STEPS}),
        (qwen_prm, {"messages": [{"role": "user", "content": PROMPT}], "steps": STEPS}),
        (math_shepherd, {"prompt": PROMPT, "steps": STEPS}),
        (critic, {"prompt": PROMPT, "completion": "".join(STEPS)}),
    ],
)
def test_every_position_has_the_value_of_the_trainers_own_code(make, item, decoder, tmp_path):
    made = make(decoder, tmp_path / "it")
    exported = export_checkpoint(str(made.path), tmp_path / "bundle", made.options)
    assert exported.parity.ok
    assert exported.parity.batch_invariant
    assert all(row.along is not None and row.along <= 1e-5 * 20 for row in exported.parity.rows)
    scorer = Scorer(exported.bundle)
    (result,) = scorer.score([item], along="tokens")
    last = made.ends[-1] + 1
    assert result.along.tokens == list(range(last))
    assert_close(result.along.scores, made.values[:last])
    assert result.score == result.along.scores[-1]
    assert scorer.score([item]).floats == [result.score]
    assert scorer.score([{"token_ids": made.ids}]).floats == [result.score]
    if make is critic:
        assert result.along.trained
        return
    assert exported.bundle.manifest.trained_at == "steps"
    assert not result.along.trained
    (result,) = scorer.score([item], along="steps", explain=True)
    assert result.along.trained
    assert result.along.tokens == made.ends
    assert_close(result.along.scores, [made.values[at] for at in made.ends])
    assert result.along.steps == [0, 1, 2, 3]
    end = exported.bundle.scoring.steps.end
    first = result.text.index(STEPS[0]) + len(STEPS[0] + end)
    assert result.along.ends[0] == first - (make is math_shepherd)
    with_ids = scorer.score([{"token_ids": made.ids}], along="steps")[0].along
    if make is trl:  # of ids nobody says where the prompt ends
        assert with_ids.tokens[-4:] == made.ends
    else:
        assert with_ids.tokens == made.ends
        assert with_ids.scores == result.along.scores


def test_the_steps_of_a_completion_are_found_by_the_separator_and_a_cut_one_has_no_value(decoder, tmp_path):
    made = trl(decoder, tmp_path / "it")
    bundle = export_checkpoint(str(made.path), tmp_path / "bundle", made.options).bundle
    scorer = Scorer(bundle)
    given, whole, ended, cut, none = scorer.score(
        [
            {"prompt": PROMPT, "steps": ["One.", "Two."]},
            {"prompt": PROMPT, "completion": "One.\nTwo."},
            {"prompt": PROMPT, "completion": "One.\nTwo.\n", "finished": False},
            {"prompt": PROMPT, "completion": "One.\nTwo.", "finished": False},
            {"prompt": PROMPT, "completion": "One", "finished": False},
        ],
        along="steps",
    )
    assert given.along == whole.along == ended.along
    assert cut.along.scores == given.along.scores[:1]
    assert cut.score == given.along.scores[0]
    assert (none.status, none.detail) == ("empty", "items[4]: no step ends in the text")
    (wrong,) = scorer.score([{"prompt": PROMPT, "steps": ["One.\nTwo.", "Three."]}])
    assert (wrong.status, wrong.detail) == ("failed", "items[0]: 3 steps end in the text, but 2 steps were given")
    assert load_bundle(bundle.path).golden[0].along is not None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (Options(), r"nothing on disk says what ends a step; give --step-end TEXT"),
        (Options(step_token="nowhere"), "--step-token: the tokenizer of .* has no token 'nowhere'"),
        (Options(step_token="id:9999"), "--step-token id:9999: the tokenizer of .* has .* tokens"),
        (Options(step_end="ab.\n"), "the last one alone is not this text"),
        (Options(step_token="a", step_end="\n"), "contains the token a 0 times"),
        (Options(step_end="\n", append_eos=True), "read at the end of the last step"),
        (Options(step_end="\n", chat_template="{{ messages }}"), "renders no chats"),
    ],
)
def test_what_is_said_of_steps_fits_the_tokenizer_and_each_other(options, message, decoder, tmp_path):
    write_token_classifier(decoder, tmp_path / "it", 2)
    with pytest.raises(SourceError, match=message):
        export_checkpoint(str(tmp_path / "it"), tmp_path / "bundle", options)


def test_a_model_of_whole_texts_has_no_steps(decoder, tmp_path):
    with pytest.raises(SourceError, match="scores whole texts; steps are of token classifiers"):
        export_checkpoint(str(decoder), tmp_path / "bundle", Options(step_end="\n"))
