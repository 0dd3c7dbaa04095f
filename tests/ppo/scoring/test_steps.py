"""Steps of completions and the policy's tokens that end them: against slow loops, over two families of tokenizers."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from plaudit_client import Along, Score
from plaudit_ppo import Prompt
from plaudit_ppo.rollout.rollouts import Rollouts
from plaudit_ppo.scoring.pool import call_scorer, join
from plaudit_ppo.scoring.steps import (
    Steps,
    ending_tokens,
    place_step_scores,
    split_steps,
    step_ends,
    to_step_items,
    to_steps,
)

CORPUS = ["one. two.\n\nthree four.\n\n", "Is it 12?\n\nYes.\n\n", "a b c ab abc\n\n"] * 4


def byte_level():
    """Merges of letters, and of a full stop with the separator behind it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False)


def sentencepiece():
    """As Llama 2's: words that begin with a low line, bytes for what is not there; a space lost at the start."""
    pieces = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *".?abceghinorstuwYI12", "▁a", "th", "▁th"]
    vocab = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    merges = [("▁", "a"), ("t", "h"), ("▁", "th")]
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False)


TOKENIZERS = {"byte level": byte_level(), "sentencepiece": sentencepiece()}
PROMPT = "Is it"
parts = st.text(st.sampled_from("ab .\n1é😀👍🏽\u200d教"), max_size=8)


def rollouts_of(tokenizer, *completions):
    """Rollouts whose completions are these ids, not finished."""
    prompt = tokenizer(PROMPT)["input_ids"]
    T = max(map(len, completions))
    ids = torch.tensor([[*each, *[0] * (T - len(each))] for each in completions])
    mask = torch.tensor([[at < len(each) for at in range(T)] for each in completions])
    return Rollouts(
        prompt_ids=torch.tensor([prompt] * len(completions)),
        prompt_mask=torch.ones(len(completions), len(prompt), dtype=torch.bool),
        completion_ids=ids,
        completion_mask=mask,
        finished=torch.zeros(len(completions), dtype=torch.bool),
        sampled_logprobs=torch.zeros(len(completions), T),
    )


@pytest.mark.parametrize("name", TOKENIZERS)
@given(data=st.data())
def test_a_step_ends_with_the_first_token_behind_which_it_has_been_written(name, data):
    """A slow loop over all tokens; the ids are any split of the text, so no tokenizer would give them again."""
    tokenizer = TOKENIZERS[name]
    texts = data.draw(st.lists(parts, min_size=1, max_size=4).filter(lambda drawn: any(map(str.strip, drawn))))
    pieces = [piece for text in texts for piece in (text, "\n\n")]
    start = len(tokenizer("a")["input_ids"]) if name == "sentencepiece" else 1
    ids = [one for piece in pieces if piece for one in tokenizer("a" + piece)["input_ids"][start:]]
    if not ids:
        return
    prompt = tokenizer(PROMPT)["input_ids"]
    (steps,) = to_steps(rollouts_of(tokenizer, ids), tokenizer, "\n\n")
    before = tokenizer.decode(prompt)
    whole = tokenizer.decode(prompt + ids)[len(before) :]
    expected, ends, at = [], [], 0
    for part in whole.split("\n\n"):
        if part.strip():
            ends.append(at + len(part.rstrip()))
            expected.append(part)
        at += len(part) + 2
    if not expected:
        expected, ends = [whole], [len(whole)]
    assert list(steps.texts) == expected
    written = [tokenizer.decode(prompt + ids[: number + 1])[len(before) :] for number in range(len(ids))]
    slow = [next(at for at, text in enumerate(written) if text[:end] == whole[:end]) for end in ends]
    assert list(steps.tokens) == slow


def test_one_token_that_holds_a_steps_end_and_the_separator_ends_the_step():
    tokenizer = TOKENIZERS["byte level"]
    merged = tokenizer(".\n\n")["input_ids"]
    assert len(merged) == 1
    ids = [*tokenizer("one")["input_ids"], *merged, *tokenizer("two")["input_ids"]]
    (steps,) = to_steps(rollouts_of(tokenizer, ids), tokenizer, "\n\n")
    assert steps.texts == ("one.", "two")
    assert steps.tokens == (len(ids) - 1 - len(tokenizer("two")["input_ids"]), len(ids) - 1)


def test_an_emoji_that_ends_a_step_is_written_with_its_last_token():
    tokenizer = TOKENIZERS["byte level"]
    ids = tokenizer("ok 😀")["input_ids"]
    assert ending_tokens([], ids, "ok 😀", [4], tokenizer) == (len(ids) - 1,)
    assert ending_tokens([], ids, "ok 😀", [2], tokenizer)[0] < len(ids) - 4


@given(st.lists(parts, max_size=5).map("\n\n".join))
def test_nothing_of_a_completion_but_separators_and_white_space_is_in_no_step(text):
    steps = split_steps(text, "\n\n")
    assert steps
    if text.strip():
        assert "".join("".join(step for step, _ in steps).split()) == "".join(text.split())
        assert all(text[:end].endswith(step.rstrip()) for step, end in steps)
    else:
        assert steps == [(text, len(text))]


def test_steps_are_sent_as_finished_items_with_one_completion():
    prompts = [Prompt(text="Q: "), Prompt(messages=({"role": "user", "content": "Q"},))]
    steps = [Steps(("a", "b"), (1, 3)), Steps(("c",), (0,))]
    assert to_step_items(prompts, steps) == [
        {"prompt": "Q: ", "steps": ["a", "b"], "finished": True},
        {"messages": [{"role": "user", "content": "Q"}], "steps": ["c"], "finished": True},
    ]


def test_scores_of_steps_stand_at_their_tokens_and_a_missing_one_is_nan():
    steps = [Steps(("a", "b"), (1, 3)), Steps(("a", "b"), (2, 2)), Steps(("a", "b"), (0, 1))]
    device = torch.device("cpu")
    placed = place_step_scores([{0: 0.5, 1: 0.25}, {0: 0.5, 1: 0.25}, {1: 0.5}], steps, 4, device)
    assert placed[:2].tolist() == [[0.0, 0.5, 0.0, 0.25], [0.0, 0.0, 0.75, 0.0]]
    assert placed[2].isnan().tolist() == [True, False, False, False]
    assert step_ends(steps, 4, device).int().tolist() == [[0, 1, 0, 1], [0, 0, 1, 0], [1, 1, 0, 0]]


def test_a_rollout_with_a_step_without_a_score_has_no_score():
    def along(*numbers):
        return Along(tokens=numbers, scores=tuple(0.5 for _ in numbers), trained=True, steps=numbers)

    items = [{"prompt": "", "steps": ["a", "b"], "finished": True}] * 4
    results = [
        Score("ok", 0.5, along=along(0, 1)),
        Score("ok", 0.5, along=along(1)),
        Score("ok", 0.5),
        Score("empty", None),
    ]
    batch = call_scorer(lambda sent: results, items)
    assert batch.scored.tolist() == [True, False, False, False]
    assert batch.failure == "1 of its 2 steps have a score"
    assert batch.steps == ({0: 0.5, 1: 0.5}, {1: 0.5}, {}, {})

    def failing(sent):
        raise ConnectionError

    failed = call_scorer(failing, items[:1])
    assert join([batch, failed], wait_s=0.0).steps == (*batch.steps, {})
    assert call_scorer(lambda sent: [Score("ok", 1.0)], [{"completion": "a"}]).steps == ()
    assert math.isnan(failed.scores[0])
