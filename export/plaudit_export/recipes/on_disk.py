"""Which trainer's recipe the files beside a checkpoint name.

`training_args.bin` is a pickle: its opcodes are read, it is never loaded.
"""

import pickletools
import re
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path

from plaudit_export.recipes.table import HF, TRL, Recipe

MODEL_CARD = "README.md"
TRAINING_ARGUMENTS = "training_args.bin"

_MAX_ARGUMENTS_BYTES = 1 << 20
_CARD_METADATA = re.compile(r"\A---\n(.*?)\n---\n", re.DOTALL)
# A list on one line, or an entry a line.
_CARD_TAGS = re.compile(r"^tags:[ \t]*(?:\[([^\]]*)\]|((?:\n[ \t]*(?:-[^\n]*)?)+))", re.MULTILINE)
_TRLS_TAGS = {"trl", "reward-trainer"}
_REWARD_CONFIG = re.compile(r"trl\..* RewardConfig")
# Since this version TRL ends texts with EOS, and takes chats as their template writes them. Its arguments name the EOS.
_TRL_WITH_EOS = (0, 24)
_TRL_VERSION = re.compile(r"^- TRL: (\d{1,9})\.(\d{1,9})", re.MULTILINE)


@dataclass(frozen=True)
class Named:
    """A recipe, and what on disk says that it is the one."""

    recipe: Recipe
    by: str

    def although(self, other: "Named | None") -> "Named":
        """The same, and what else names another recipe, for the user."""
        if other is None or other.recipe == self.recipe:
            return self
        return replace(self, by=f"{self.by}, although {other.by}")


def recipe_on_disk(directory: Path) -> Named | None:
    """The recipe of the trainer that the files of a directory name: its arguments, else the tags of its model card."""
    arguments, card = _by_arguments(directory / TRAINING_ARGUMENTS), _by_card(directory / MODEL_CARD)
    return card if arguments is None else arguments.although(card)


def _by_arguments(file: Path) -> Named | None:
    strings = _strings(file)
    if not any(_REWARD_CONFIG.fullmatch(string) for string in strings):
        return None
    if "eos_token" in strings:
        return Named(TRL, f"{TRAINING_ARGUMENTS} is of TRL's RewardTrainer, 0.24 or later")
    return Named(HF, f"{TRAINING_ARGUMENTS} is of TRL's RewardTrainer before 0.24")


def _by_card(file: Path) -> Named | None:
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, ValueError):
        return None
    metadata, version = _CARD_METADATA.match(text), _TRL_VERSION.search(text)
    if metadata is None or version is None:  # the tags alone are those of every version
        return None
    if not _tags(metadata[1]) >= _TRLS_TAGS:
        return None
    number = int(version[1]), int(version[2])
    recipe = TRL if number >= _TRL_WITH_EOS else HF
    return Named(recipe, f"{MODEL_CARD} names RewardTrainer of TRL {number[0]}.{number[1]}")


def _tags(metadata: str) -> set[str]:
    tags = _CARD_TAGS.search(metadata)
    if tags is None:
        return set()
    on_one_line, lines = tags.groups()
    entries = lines.split("\n") if on_one_line is None else on_one_line.split(",")
    return {entry.strip().removeprefix("- ").strip(" \"'") for entry in entries}


def _strings(file: Path) -> set[str]:
    """The names and texts in a file that torch.save wrote; none where it is none."""
    try:
        with zipfile.ZipFile(file) as archive:
            (pickle,) = (entry for entry in archive.infolist() if entry.filename.endswith("/data.pkl"))
            if pickle.compress_type != zipfile.ZIP_STORED or pickle.file_size > _MAX_ARGUMENTS_BYTES:
                return set()  # torch.save compresses nothing, and what is compressed can be of any size
            return {given for _, given, _ in pickletools.genops(archive.read(pickle)) if isinstance(given, str)}
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, RuntimeError):
        return set()
