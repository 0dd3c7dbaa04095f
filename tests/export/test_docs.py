"""Every option of plaudit-export checkpoint and onnx, and every file of a bundle, is in the docs."""

import re
import subprocess
import sys
from pathlib import Path
from typing import get_args

from plaudit_service.bundles import bundle

DOC = (Path(__file__).parents[2] / "docs" / "export.md").read_text()


def test_every_option_is_documented_and_no_other():
    command = str(Path(sys.executable).with_name("plaudit-export"))
    options = set()
    for source in ("checkpoint", "onnx"):
        text = subprocess.run([command, source, "--help"], capture_output=True, text=True, check=True).stdout
        options |= set(re.findall(r"^  (--[a-z-]+)", text, flags=re.MULTILINE))
    table = DOC.split("| option |")[1].split("\n\n")[0]
    assert {line.split("`")[1] for line in table.splitlines() if line.startswith("| `")} == options


def test_every_file_of_a_bundle_is_documented():
    names = {bundle.MANIFEST, *get_args(bundle.ScoringFile), *get_args(bundle.OtherFile)}
    assert all(f"`{name}`" in DOC for name in names)
