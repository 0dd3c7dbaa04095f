"""Every error and every option of the client is in the docs."""

import re
import subprocess
import sys
from pathlib import Path

from plaudit_client import errors
from plaudit_client.testing import FakeService

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


def test_the_block_about_fakes_runs():
    (block,) = [block for block in re.findall(r"```python\n(.*?)```", DOC, re.DOTALL) if "FakeScorer" in block]
    subprocess.run([sys.executable, "-W", "error", "-c", block], check=True)


def test_the_block_about_rejection_sampling_finds_the_best_completion(serve):
    url = serve(FakeService(lambda item: float(len(item["completion"]))))
    (block,) = [block for block in re.findall(r"```python\n(.*?)```", DOC, re.DOTALL) if "best_of" in block]
    code = block.replace("http://rm:8000", url) + "print(best)"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "Best(completion=' Seven minutes.', index=0, score=15.0)\n"
