"""The files beside a checkpoint name its trainer; nothing of theirs is run."""

import zipfile

import pytest
import torch
import trl

from plaudit_export.quiet import quiet
from plaudit_export.recipes.on_disk import Named, recipe_on_disk
from plaudit_export.recipes.table import HF, TRL

REWARD_CONFIG = b"ctrl.trainer.reward_config\nRewardConfig\n"

CARD = """\
---
base_model: org/base
tags:
- generated_from_trainer
- trl
- {tag}
licence: license
---

# Model Card

### Framework versions

- TRL: {version}
- Transformers: 5.0.0
"""


def write_pickle(directory, opcodes):
    """As torch.save writes: a pickle in an archive."""
    with zipfile.ZipFile(directory / "training_args.bin", "w") as archive:
        archive.writestr("training_args/data.pkl", opcodes)


def test_the_arguments_that_trl_saves_name_its_recipe(tmp_path):
    with quiet():
        arguments = trl.RewardConfig(output_dir=str(tmp_path / "run"), use_cpu=True, bf16=False, report_to="none")
    torch.save(arguments, tmp_path / "training_args.bin")
    found = recipe_on_disk(tmp_path)
    assert (found.recipe, found.by) == (TRL, "training_args.bin is of TRL's RewardTrainer, 0.24 or later")


def test_arguments_without_an_eos_token_are_those_of_trl_before_it_appended_one(tmp_path):
    write_pickle(tmp_path, b"\x80\x02" + REWARD_CONFIG + b".")
    assert recipe_on_disk(tmp_path).recipe == HF
    write_pickle(tmp_path, b"\x80\x02" + REWARD_CONFIG + b"S'eos_token'\n.")
    assert recipe_on_disk(tmp_path).recipe == TRL


def test_arguments_hold_against_a_card_of_another_version_which_is_told(tmp_path):
    write_pickle(tmp_path, b"\x80\x02" + REWARD_CONFIG + b".")
    (tmp_path / "README.md").write_text(CARD.format(tag="reward-trainer", version="0.23.1"))
    before = "training_args.bin is of TRL's RewardTrainer before 0.24"
    assert recipe_on_disk(tmp_path) == Named(HF, before)
    (tmp_path / "README.md").write_text(CARD.format(tag="reward-trainer", version="0.24.0"))
    assert recipe_on_disk(tmp_path) == Named(HF, f"{before}, although README.md names RewardTrainer of TRL 0.24")


def test_a_pickle_is_never_run(tmp_path):
    mark = tmp_path / "mark"
    opcodes = REWARD_CONFIG + f"cbuiltins\nopen\n(S'{mark}'\nS'w'\ntR.".encode()
    write_pickle(tmp_path, opcodes)
    assert recipe_on_disk(tmp_path).recipe == HF
    assert not mark.exists()


@pytest.mark.parametrize("opcodes", [b"", b"\xff\xff", b"cother.trainer\nTrainingArguments\n.", b" " * (1 << 21)])
def test_arguments_of_another_kind_name_nobody(tmp_path, opcodes):
    write_pickle(tmp_path, opcodes)
    assert recipe_on_disk(tmp_path) is None


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04"])
def test_a_file_that_is_no_archive_names_nobody(tmp_path, content):
    (tmp_path / "training_args.bin").write_bytes(content)
    assert recipe_on_disk(tmp_path) is None


def test_compressed_arguments_which_may_be_of_any_size_name_nobody(tmp_path):
    file = tmp_path / "training_args.bin"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("training_args/data.pkl", REWARD_CONFIG + b".")
    assert recipe_on_disk(tmp_path) is None
    content = file.read_bytes()
    file.write_bytes(content.replace(content[52:60], b"\xff" * 8))  # no deflated data
    assert recipe_on_disk(tmp_path) is None


def test_arguments_whose_index_says_more_than_there_is_name_nobody(tmp_path):
    write_pickle(tmp_path, REWARD_CONFIG + b".")
    file = tmp_path / "training_args.bin"
    content = bytearray(file.read_bytes())
    entry = content.index(b"PK\x01\x02")
    content[entry + 20 : entry + 28] = (1000).to_bytes(4, "little") * 2  # its size, twice
    file.write_bytes(content)
    assert recipe_on_disk(tmp_path) is None


@pytest.mark.parametrize(
    ("tag", "version", "recipe"),
    [
        ("reward-trainer", "0.24.0", TRL),
        ("reward-trainer", "1.16.0.dev0", TRL),
        ("reward-trainer", "0.9.6", HF),
        ("sft", "1.0.0", None),
        ("reward-trainer", "unknown", None),
        ("reward-trainer", f"{'9' * 5000}.0", None),
    ],
)
def test_the_tags_and_the_version_of_a_model_card_name_the_recipe(tmp_path, tag, version, recipe):
    (tmp_path / "README.md").write_text(CARD.format(tag=tag, version=version))
    found = recipe_on_disk(tmp_path)
    assert (found and found.recipe) == recipe
    if recipe:
        assert found.by == f"README.md names RewardTrainer of TRL {'.'.join(version.split('.')[:2])}"


@pytest.mark.parametrize(
    "tags",
    [
        "tags: [generated_from_trainer, trl, reward-trainer]",
        "tags: ['trl', \"reward-trainer\"]",
        "tags: [trl,\n  reward-trainer]",
        "tags:\n  - 'trl'\n\n  - reward-trainer\nlibrary_name: x",
    ],
)
def test_the_tags_of_a_model_card_are_read_however_yaml_writes_them(tmp_path, tags):
    (tmp_path / "README.md").write_text(f"---\n{tags}\n---\n\n- TRL: 1.0.0\n")
    assert recipe_on_disk(tmp_path).recipe == TRL


@pytest.mark.parametrize("metadata", ["tags: []\nx:\n- trl\n- reward-trainer", "tags: trl", "tags:", "tags: [trl]"])
def test_what_is_no_tag_of_a_model_card_names_nobody(tmp_path, metadata):
    (tmp_path / "README.md").write_text(f"---\n{metadata}\n---\n\n- TRL: 1.0.0\n")
    assert recipe_on_disk(tmp_path) is None


def test_a_directory_that_says_nothing_names_nobody(tmp_path):
    assert recipe_on_disk(tmp_path) is None
    (tmp_path / "README.md").write_bytes(b"\xff no text")
    assert recipe_on_disk(tmp_path) is None
