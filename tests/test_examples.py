"""Every program of examples/ does what its first lines say, as a process, against a real service where it needs one."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
PROMPT = "How do I boil an egg?"


def run(program, *arguments, text=""):
    command = [sys.executable, EXAMPLES / program, *map(str, arguments)]
    done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def url(causal_bundle):
    from plaudit_service.testing import running_service

    with running_service(causal_bundle) as service:
        yield service.url


@pytest.fixture
def scores(url):
    """The service's own scores of the completions of the prompt."""
    from plaudit_client import RewardClient

    def ask(*completions):
        with RewardClient(url) as client:
            return client.score([{"prompt": PROMPT, "completions": list(completions)}]).floats

    return ask


def test_best_of_n_prints_the_completion_with_the_highest_score(url, scores):
    completions = [" Seven minutes.", " No.", " Boil it."]
    (line,) = run("best_of_n.py", url, text=json.dumps({"prompt": PROMPT, "completions": completions})).stdout.split(
        "\n"
    )[:-1]
    asked = scores(*completions)
    assert json.loads(line) == {
        "prompt": PROMPT,
        "completion": completions[asked.index(max(asked))],
        "score": max(asked),
    }


def test_filter_pairs_keeps_the_pairs_that_the_model_ranks_as_the_file_does(url, scores, tmp_path):
    better, worse = sorted([" Seven minutes.", " No."], key=lambda text: -scores(text)[0])
    pairs = [
        {"prompt": PROMPT, "chosen": better, "rejected": worse},
        {"prompt": PROMPT, "chosen": worse, "rejected": better},
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    done = run("filter_pairs.py", url, tmp_path / "pairs.jsonl", tmp_path / "kept.jsonl")
    assert [json.loads(line) for line in (tmp_path / "kept.jsonl").read_text().splitlines()] == pairs[:1]
    assert done.stderr == "1 kept, 1 below the margin\n"


def test_compare_bundles_finds_that_a_bundle_ranks_as_itself(causal_bundle, tmp_path):
    (tmp_path / "texts.jsonl").write_text('"one"\n"two words"\n"and three words"\n')
    said = run("compare_bundles.py", causal_bundle, causal_bundle, tmp_path / "texts.jsonl").stdout
    assert "3 of 3 texts have a score by both" in said
    assert "100.0% of 3 pairs of texts are ranked alike" in said


def test_the_reward_function_for_trl_gives_the_services_scores(url, scores):
    completions = [" Seven minutes in boiling water.", " No."]
    lines = run("trl_reward.py", url).stdout.splitlines()
    assert [float(line.split()[0]) for line in lines] == scores(*completions)


def test_the_rule_is_a_scorer_of_plaudit_ppo():
    from plaudit_ppo.scoring.openrlhf import OpenRLHFScorer

    process = subprocess.Popen([sys.executable, EXAMPLES / "rule_reward.py", "0"], stdout=subprocess.PIPE, text=True)
    try:
        port = process.stdout.readline().split()[-1]
        address = f"openrlhf+http://127.0.0.1:{port}/get_reward"
        scorer = OpenRLHFScorer(address, timeout_s=30, label_column="answer")
        items = [{"prompt": "2 + 3 =", "completions": [" 5", " 6"]}]
        assert scorer(items, extra=[{"answer": "5"}]).floats == [1.0, 0.0]
    finally:
        process.kill()
        process.communicate()


def test_every_example_is_tested_and_listed():
    programs = {path.name for path in EXAMPLES.glob("*.py")}
    assert all(f"({name})" in (EXAMPLES / "README.md").read_text() for name in programs)
    assert all(f'"{name}"' in Path(__file__).read_text() for name in programs)
