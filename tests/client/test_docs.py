"""Every error and every option of the client is in the docs."""

import re
import subprocess
import sys
from pathlib import Path

from plaudit_client import errors

DOC = (Path(__file__).parents[2] / "docs" / "client.md").read_text()


def test_every_error_is_documented_and_no_other():
    names = {
        name for name, kind in vars(errors).items() if isinstance(kind, type) and kind.__module__ == errors.__name__
    }
    table = DOC.split("| error |")[1].split("\n\n")[0]
    assert {line.split("`")[1] for line in table.splitlines() if line.startswith("| `")} == names


def test_every_option_of_plaudit_score_is_documented_with_its_variable():
    command = [sys.executable, "-m", "plaudit_client.cli", "--help"]
    text = " ".join(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())
    shown = set(re.findall(r"\[(PLAUDIT_\w+)", text))
    documented = {
        f"`{option}` | `PLAUDIT_{option[2:].replace('-', '_').upper()}`"
        for option in set(re.findall(r"(--[a-z-]+) ?", text)) - {"--help", "--output"}
    }
    assert all(row in DOC for row in documented)
    assert shown == {row.split("`")[-2] for row in documented}
