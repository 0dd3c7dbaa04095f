"""A recipe and what the user says of it become one rule, and the user hears what was taken and how to take another."""

from dataclasses import replace
from pathlib import Path

import datasets
import pytest
import transformers
import trl

from plaudit_export.checkpoints.checkpoint import Checkpoint, load_checkpoint
from plaudit_export.checkpoints.rules import Options, Rules, derive_rules
from plaudit_export.checks.reference import Reference
from plaudit_export.errors import SourceError
from plaudit_export.quiet import quiet
from plaudit_export.recipes.on_disk import Named
from plaudit_export.recipes.settling import settle
from plaudit_export.recipes.table import HF, OPENRLHF, RECIPES, TEMPLATE, TRL, TextRule
from plaudit_export.testing import tiny_causal_checkpoint
from plaudit_service.bundles.bundle import fingerprint

HASHES = {"model.onnx": "0" * 64, "tokenizer.json": "1" * 64}
EVERY_WAY = [
    {"has_template": has_template, "template_ends_with_eos": ends}
    for has_template, ends in ((False, False), (True, False), (True, True))
]


@pytest.fixture(scope="module")
def causal(causal_checkpoint: Path) -> Checkpoint:
    return load_checkpoint(str(causal_checkpoint))


def rules_of(checkpoint: Checkpoint, **said: object) -> Rules:
    return derive_rules(checkpoint, Options(name="rm", **said))


@pytest.mark.parametrize("way", EVERY_WAY)
def test_a_recipe_without_words_of_the_user_is_its_row(way):
    for recipe in RECIPES.values():
        rule = settle(recipe, {}, **way)
        assert replace(rule, chat_end="as_text") == replace(recipe.rule, chat_end="as_text")
        assert rule.chat_end == (recipe.rule.chat_end if way["has_template"] else "as_text")


def test_eos_on_chats_takes_the_place_of_newlines_behind_an_eos():
    said = {"append_eos": True}
    ends = [settle(TEMPLATE, said, **way).chat_end for way in EVERY_WAY]
    assert ends == ["as_text", "as_text", "eos"]
    assert settle(TEMPLATE, said | {"strip_newlines": True}, **EVERY_WAY[-1]).chat_end == "as_text"


def test_without_eos_there_is_no_space_before_it():
    assert settle(OPENRLHF, {"append_eos": False}, **EVERY_WAY[1]) == TextRule(add_special_tokens=False)


def test_no_words_are_the_rules_and_the_fingerprint_of_before_recipes(causal):
    rules = rules_of(causal)
    assert rules.recipe == "template"
    old = {"add_special_tokens", "append_eos"}
    assert fingerprint(rules.scoring(HASHES)) == fingerprint(rules_of(causal, recipe="template").scoring(HASHES))
    assert {name for name in TextRule.__dataclass_fields__ if getattr(rules, name)} - old == {"chat_end"}
    assert rules.chat_end == "as_text"


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_by_its_name_is_said_and_kept(causal, name):
    rules = rules_of(causal, recipe=name)
    recipe = RECIPES[name]
    assert rules.recipe == name
    assert [getattr(rules, field) for field in ("append_eos", "add_special_tokens", "chat_special_tokens")] == [
        recipe.rule.append_eos,
        recipe.rule.add_special_tokens,
        recipe.rule.chat_special_tokens,
    ]
    assert f"recipe {name}, because --recipe: {recipe.describe()} (--recipe)" in rules.notes


def test_a_checkpoint_that_names_nobody_is_told_which_recipe_it_got_and_how_to_take_another(causal):
    notes = "\n".join(rules_of(causal).notes)
    assert "recipe template, because nothing on disk names a trainer" in notes
    assert "plaudit-export rules SOURCE --pairs FILE" in notes
    assert "--recipe trl, which appends it to texts and not to chats, or --append-eos, which does to both" in notes


def test_options_one_by_one_may_make_a_recipe_or_nobodys(causal):
    assert rules_of(causal, chat_special_tokens=True).recipe == HF.name
    nobodys = rules_of(causal, append_eos=True, chat_special_tokens=True)
    assert (nobodys.recipe, nobodys.chat_end) == (None, "eos")


def test_an_option_wins_over_what_the_files_name_and_is_told(causal):
    found = replace(causal, trained_by=Named(TRL, "README.md names it"))
    assert rules_of(found).recipe == "trl"
    rules = rules_of(found, append_eos=False)
    assert (rules.recipe, rules.append_eos) == ("template", False)
    (note,) = (note for note in rules.notes if note.startswith("recipe"))
    assert note.startswith("recipe trl, because README.md names it: ")
    assert note.endswith("; but for append_eos, as the options say (--recipe)")


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"recipe": "trl", "append_eos": False}, "--no-append-eos: the recipe trl says otherwise"),
        (
            {"recipe": "template", "chat_special_tokens": True},
            "--chat-special-tokens: the recipe template says otherwise",
        ),
    ],
)
def test_a_recipe_and_an_option_that_contradict_each_other_are_refused(causal, said, message):
    with pytest.raises(SourceError, match=message):
        rules_of(causal, **said)


def test_an_encoder_gets_no_recipe_that_appends_eos(encoder_checkpoint):
    encoder = load_checkpoint(str(encoder_checkpoint))
    with pytest.raises(
        SourceError, match="--recipe trl: ends texts with EOS, and BertForSequenceClassification is an en"
    ):
        rules_of(encoder, recipe="trl")
    rules = rules_of(replace(encoder, trained_by=Named(TRL, "README.md names it")))
    assert (rules.recipe, rules.append_eos) == ("template", False)
    assert any(note.startswith("README.md names it, which puts EOS behind plain texts") for note in rules.notes)


CHATS = [
    {
        "prompt": [{"role": "user", "content": "Boil an egg."}],
        "chosen": [{"role": "assistant", "content": "Seven minutes."}],
        "rejected": [{"role": "assistant", "content": "I cannot.\n"}],
    }
]
TEXTS = [{"prompt": "Boil an egg.", "chosen": " Seven minutes.\n", "rejected": " I cannot.<|im_end|>"}]


@pytest.mark.parametrize("rows", [CHATS, TEXTS], ids=["chats", "texts"])
def test_the_recipe_of_trl_gives_the_ids_that_trl_trains_on(tmp_path, rows):
    directory = tiny_causal_checkpoint(tmp_path / "it", add_bos=True, num_hidden_layers=1)
    with quiet():
        trainer = trl.RewardTrainer(
            model=transformers.AutoModelForSequenceClassification.from_pretrained(directory),
            args=trl.RewardConfig(
                output_dir=str(tmp_path / "run"), use_cpu=True, bf16=False, report_to="none", disable_tqdm=True
            ),
            train_dataset=datasets.Dataset.from_list(rows),
            processing_class=transformers.AutoTokenizer.from_pretrained(directory),
        )
    (trained,) = trainer.train_dataset
    checkpoint = load_checkpoint(str(directory))
    reference = Reference(checkpoint, rules_of(checkpoint, recipe="trl"))
    for which in ("chosen", "rejected"):
        prompt, answer = rows[0]["prompt"], rows[0][which]
        item = {"messages": prompt + answer} if rows is CHATS else {"prompt": prompt, "completion": answer}
        assert reference.tokenize(item).token_ids == trained[f"{which}_ids"]
