"""Where a checkpoint's files allow two readings of a chat, the export says which it took, and can take the other."""

import json

import pytest
import torch
import transformers
from tokenizers import Tokenizer

from plaudit_export.checkpoints.checkpoint import load_checkpoint
from plaudit_export.checkpoints.rules import Options, derive_rules
from plaudit_export.exporter import export_checkpoint
from plaudit_export.testing import CHATML_TEMPLATE, tiny_causal_checkpoint, tiny_encoder_checkpoint
from plaudit_service.bundles.bundle import REPORT
from plaudit_service.serving.scorer import Scorer

CHAT = [{"role": "user", "content": "the quick"}, {"role": "assistant", "content": "lazy dog"}]
RENDERED = "<|im_start|>user\nthe quick<|im_end|>\n<|im_start|>assistant\nlazy dog<|im_end|>\n"
BOS = 1
ITEM = {"messages": CHAT}


def export(checkpoint, directory, **options):
    notes: list[str] = []
    exported = export_checkpoint(str(checkpoint), directory / "bundle", Options(**options), note=notes.append)
    report = json.loads((exported.bundle.path / REPORT).read_text())
    assert report["notes"] == notes
    return exported.bundle, [note for note in notes if "--chat-special-tokens" in note]


def score_of(checkpoint, ids):
    model = transformers.AutoModelForSequenceClassification.from_pretrained(checkpoint, dtype=torch.float32).eval()
    with torch.no_grad():
        return model(torch.tensor([ids])).logits.item()


def ids_of(checkpoint, text, *, special):
    return Tokenizer.from_file(str(checkpoint / "tokenizer.json")).encode(text, add_special_tokens=special).ids


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Zephyr-like: the tokenizer adds BOS, the chat template writes none."""
    return tiny_causal_checkpoint(tmp_path_factory.mktemp("bos") / "it", add_bos=True, num_hidden_layers=1)


def rules_of(checkpoint, **options):
    return derive_rules(load_checkpoint(str(checkpoint)), Options(**options))


@pytest.mark.parametrize(("chat_special_tokens", "bos"), [(None, []), (True, [BOS])])
def test_a_chat_is_scored_by_the_reading_that_was_taken(chat_special_tokens, bos, checkpoint, tmp_path):
    bundle, notes = export(checkpoint, tmp_path, chat_special_tokens=chat_special_tokens)
    assert len(notes) == (chat_special_tokens is None)
    assert all("as TRL trains" in note and "which adds '<|bos|>'" in note for note in notes)
    expected = [*bos, *ids_of(checkpoint, RENDERED, special=False)]
    assert ids_of(checkpoint, RENDERED, special=bool(bos)) == expected
    scorer = Scorer(bundle)
    assert scorer.score([ITEM]).floats == pytest.approx([score_of(checkpoint, expected)], abs=1e-5)
    assert scorer.score(["the quick"]).floats == pytest.approx(
        [score_of(checkpoint, ids_of(checkpoint, "the quick", special=True))], abs=1e-5
    )


def test_the_reading_that_was_taken_is_the_one_without(checkpoint):
    assert rules_of(checkpoint) == rules_of(checkpoint, chat_special_tokens=False)


def test_the_readings_are_apart(checkpoint):
    without = ids_of(checkpoint, RENDERED, special=False)
    assert abs(score_of(checkpoint, without) - score_of(checkpoint, [BOS, *without])) > 1e-2


def test_a_template_that_writes_bos_allows_one_reading_and_never_two_bos(tmp_path):
    template = "{{ bos_token }}" + CHATML_TEMPLATE
    checkpoint = tiny_causal_checkpoint(tmp_path / "it", add_bos=True, num_hidden_layers=1, chat_template=template)
    expected = score_of(checkpoint, [BOS, *ids_of(checkpoint, RENDERED, special=False)])
    for number, said in enumerate((None, True)):
        bundle, notes = export(checkpoint, tmp_path / str(number), chat_special_tokens=said)
        assert notes == []
        assert Scorer(bundle).score([ITEM]).floats == pytest.approx([expected], abs=1e-5)


def test_an_encoder_whose_chats_could_have_cls_and_sep_is_told_too(tmp_path):
    checkpoint = tiny_encoder_checkpoint(tmp_path / "it", num_hidden_layers=1)
    template = "{% for message in messages %}{{ message['content'] }} {% endfor %}"
    _, (note,) = export(checkpoint, tmp_path, chat_template=template)
    assert "which adds '[CLS]', '[SEP]'" in note
    bundle, notes = export(checkpoint, tmp_path / "other", chat_template=template, chat_special_tokens=True)
    expected = score_of(checkpoint, ids_of(checkpoint, "the quick lazy dog ", special=True))
    assert notes == []
    assert Scorer(bundle).score([ITEM]).floats == pytest.approx([expected], abs=1e-5)
