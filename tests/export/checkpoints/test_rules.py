import json
from dataclasses import replace
from pathlib import Path

import pytest

from plaudit_export.checkpoints.checkpoint import Checkpoint, load_checkpoint
from plaudit_export.checkpoints.rules import Options, derive_rules
from plaudit_export.errors import SourceError
from plaudit_export.testing import CHATML_TEMPLATE, tiny_causal_checkpoint, tiny_encoder_checkpoint
from plaudit_service.bundles.bundle import Head, SpecialToken


@pytest.fixture(scope="module")
def causal(causal_checkpoint: Path) -> Checkpoint:
    return load_checkpoint(str(causal_checkpoint))


@pytest.fixture(scope="module")
def encoder(encoder_checkpoint: Path) -> Checkpoint:
    return load_checkpoint(str(encoder_checkpoint))


def test_rules_are_read_from_the_checkpoint(causal):
    rules = derive_rules(causal, Options())
    assert (rules.kind, rules.max_tokens, rules.vocab_size, rules.pad_token_id) == ("causal", 256, 328, 0)
    assert (rules.bos, rules.eos) == (SpecialToken(text="<|bos|>", id=1), SpecialToken(text="<|im_end|>", id=3))
    assert (rules.add_special_tokens, rules.append_eos, rules.pair) == (True, False, False)
    assert rules.heads == (Head(name="score", weight=1.0),)
    assert (rules.name, rules.chat_template) == ("tiny-llama", CHATML_TEMPLATE)


def test_every_guess_gives_a_note_that_names_its_option(causal, encoder):
    notes = "\n".join(derive_rules(causal, Options()).notes)
    assert all(option in notes for option in ("--name", "--append-eos", "--no-add-special-tokens"))
    notes = "\n".join(derive_rules(encoder, Options()).notes)
    assert all(option in notes for option in ("--pair", "--chat-template", "--name"))


def test_what_the_user_says_is_no_guess(causal):
    said = Options(name="rm-v2", append_eos=True, add_special_tokens=False, max_tokens=100)
    rules = derive_rules(causal, said)
    assert (rules.name, rules.append_eos, rules.add_special_tokens, rules.max_tokens) == ("rm-v2", True, False, 100)
    assert rules.notes == ()


def test_a_missing_pad_token_and_pad_equal_to_eos_are_told(tmp_path):
    none = load_checkpoint(str(tiny_causal_checkpoint(tmp_path / "none", pad="none")))
    assert derive_rules(none, Options()).pad_token_id is None
    assert "no pad token" in derive_rules(none, Options()).notes[0]
    eos = load_checkpoint(str(tiny_causal_checkpoint(tmp_path / "eos", pad="eos")))
    assert derive_rules(eos, Options()).pad_token_id == 3
    assert "pad token is the EOS token" in derive_rules(eos, Options()).notes[0]


@pytest.mark.parametrize("labels", [{0: ""}, {0: "good", 1: "good"}])
def test_labels_that_name_no_head_of_its_own_are_refused(labels, tmp_path):
    path = tiny_causal_checkpoint(tmp_path, num_labels=len(labels), id2label=labels, problem_type="regression")
    checkpoint = load_checkpoint(str(path))
    with pytest.raises(SourceError, match=r"id2label of its config\.json gives its heads the names '.*--heads NAME"):
        derive_rules(checkpoint, Options())
    heads = [Head(name=f"head-{number}") for number in labels]
    assert derive_rules(checkpoint, Options(heads=heads)).heads == tuple(heads)


def test_several_heads_take_their_names_from_the_config_or_the_user(tmp_path):
    labels = {0: "helpful", 1: "harmless"}
    scores = {"id2label": labels, "problem_type": "multi_label_classification"}
    checkpoint = load_checkpoint(str(tiny_causal_checkpoint(tmp_path, num_labels=2, **scores)))
    guessed = derive_rules(checkpoint, Options())
    assert [head.name for head in guessed.heads] == ["helpful", "harmless"]
    assert any("plain sum" in note for note in guessed.notes)
    heads = (Head(name="a", weight=2.0), Head(name="b", weight=-1.0))
    assert derive_rules(checkpoint, Options(heads=heads)).heads == heads
    with pytest.raises(SourceError, match=r"names 1 heads, .* has 2"):
        derive_rules(checkpoint, Options(heads=heads[:1]))


@pytest.mark.parametrize(
    ("num_labels", "config", "message"),
    [
        (2, {}, "2 heads (LABEL_0, LABEL_1) of a classifier, or two scores: the config does not say what the score"),
        (
            2,
            {"id2label": {0: "NEGATIVE", 1: "POSITIVE"}},
            "--heads NEGATIVE=-1,POSITIVE=1 for the log odds of POSITIVE",
        ),
        (2, {"problem_type": "single_label_classification"}, "whose problem_type is single_label_classification"),
        (3, {"problem_type": "single_label_classification"}, "--heads LABEL_0=1,LABEL_1=1,LABEL_2=1 for the sum"),
        (3, {}, None),
        (2, {"problem_type": "regression"}, None),
    ],
)
def test_the_heads_of_a_classifier_are_not_summed_by_a_guess(tmp_path, num_labels, config, message):
    checkpoint = load_checkpoint(str(tiny_encoder_checkpoint(tmp_path, num_labels=num_labels, **config)))
    if message is None:
        assert any("plain sum" in note for note in derive_rules(checkpoint, Options()).notes)
        return
    with pytest.raises(SourceError) as raised:
        derive_rules(checkpoint, Options())
    assert message in str(raised.value)
    said = tuple(Head(name=f"h{index}", weight=(-1.0) ** index) for index in range(num_labels))
    assert derive_rules(checkpoint, Options(heads=said)).heads == said


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (Options(max_tokens=257), "--max-tokens 257: more than the 256 usable positions of tiny-llama"),
        (Options(pair=True), "--pair: LlamaForSequenceClassification is a decoder"),
        (Options(name="../rm"), "--name"),
        (Options(space_before_eos=True), "--space-before-eos: no EOS is appended"),
        (Options(chat_template="\n"), "--chat-template: the file is empty"),
    ],
)
def test_an_option_that_does_not_fit_the_checkpoint_is_refused(causal, options, message):
    with pytest.raises(SourceError, match=message):
        derive_rules(causal, options)


def test_a_special_token_without_a_text_is_none(tmp_path):
    directory = tiny_causal_checkpoint(tmp_path, num_hidden_layers=1)
    file = directory / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"eos_token": ""}))
    assert derive_rules(load_checkpoint(str(directory)), Options()).eos is None


def test_appending_eos_needs_an_eos_token(encoder):
    with pytest.raises(SourceError, match="no EOS token"):
        derive_rules(encoder, Options(append_eos=True))


def test_a_template_that_asks_for_the_date_is_told(causal):
    template = "{{ strftime_now('%Y') if strftime_now is defined else '2024' }}"
    assert any("date" in note for note in derive_rules(causal, Options(chat_template=template)).notes)


def test_the_rules_hold_the_special_tokens_that_the_template_names(causal):
    named = {"unk_token": "<unk>", "additional_special_tokens": ["<a>", "<b>"]}
    tokens = {"bos_token": "<s>", "mask_token": "<mask>", **named}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(causal.tokenizer), "special_tokens_map", property(lambda _: tokens))
        template = "{{ bos_token }}{{ unk_token }}{{ additional_special_tokens[1] }}"
        assert derive_rules(causal, Options(chat_template=template)).template_tokens == named
        assert derive_rules(causal, Options()).template_tokens == {}


def test_a_hub_id_gives_a_usable_name(causal):
    hub = replace(causal, id="some-org/Reward Model_v1.5")
    assert derive_rules(hub, Options()).name == "Reward-Model_v1.5"
