"""Every option of plaudit-export checkpoint, cache, rules, onnx, verify and every file of a bundle are in the docs."""

import re
import subprocess
import sys
from pathlib import Path
from typing import get_args

from pages import name_in, names_in, rows

from plaudit_service.bundles import bundle

DOCS = Path(__file__).parents[2] / "docs"


def test_every_option_is_documented_and_no_other():
    command = str(Path(sys.executable).with_name("plaudit-export"))
    options = set()
    for each in ("checkpoint", "cache", "rules", "onnx", "verify"):
        text = subprocess.run([command, each, "--help"], capture_output=True, text=True, check=True).stdout
        options |= set(re.findall(r"^  (--[a-z-]+)", text, flags=re.MULTILINE))
    assert {
        name_in(row["option"]) for row in rows((DOCS / "export.md").read_text(), "option", "default")
    } == options - {"--version"}


def test_every_file_of_a_bundle_is_documented_and_no_other():
    documented = {
        file for row in rows((DOCS / "bundle.md").read_text(), "file", "content") for file in names_in(row["file"])
    }
    assert documented == {bundle.MANIFEST, *get_args(bundle.ScoringFile), *get_args(bundle.OtherFile)}
