"""Every option of the client is in the docs, and its examples run."""

import re
import subprocess
import sys
from pathlib import Path

from pages import name_in, rows

from plaudit_client.testing import FakeService

DOC = (Path(__file__).parents[2] / "docs" / "client.md").read_text()


def test_every_option_of_plaudit_score_is_documented_with_its_variable_and_no_other():
    command = [sys.executable, "-m", "plaudit_client.cli", "--help"]
    text = " ".join(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())
    shown = set(re.findall(r"\[(PLAUDIT_\w+)", text))
    options = {
        (option, f"PLAUDIT_{option[2:].replace('-', '_').upper()}")
        for option in set(re.findall(r"(--[a-z-]+) ?", text)) - {"--help", "--version", "--output"}
    }
    assert {(name_in(row["option"]), name_in(row["variable"])) for row in rows(DOC, "option", "variable")} == options
    assert shown == {variable for _, variable in options}


def test_the_block_about_fakes_runs():
    (block,) = [block for block in re.findall(r"```python\n(.*?)```", DOC, re.DOTALL) if "FakeScorer" in block]
    subprocess.run([sys.executable, "-W", "error", "-c", block], check=True)


def test_the_block_about_rejection_sampling_finds_the_best_completion(serve):
    url = serve(FakeService(lambda item: float(len(item["completion"]))))
    (block,) = [block for block in re.findall(r"```python\n(.*?)```", DOC, re.DOTALL) if "best_of" in block]
    code = block.replace("http://rm:8000", url) + "print(best)"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "Best(completion=' Seven minutes.', index=0, score=15.0)\n"
