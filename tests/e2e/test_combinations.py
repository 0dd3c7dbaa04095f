"""The client and a combination, over a real socket."""

import subprocess
import sys
from pathlib import Path

from plaudit_client import RewardClient
from plaudit_service import CombinedScorer, Scorer

ITEMS = [
    {"text": "good fine"},
    {"prompt": "bad", "completions": [" good", " awful awful"]},
    {"messages": [{"role": "user", "content": "good"}], "completions": ["fine"]},
    {"text": "good " * 30},
]


def test_the_client_asks_for_a_combination_by_its_name_and_gets_what_it_is_in_process(serve, tiny_bundle, tmp_path):
    bundles = [tiny_bundle(name="helpful", heads={"x": 0.3, "y": 0.1}), tiny_bundle(name="harmless", max_tokens=24)]
    formula = "safe=0.7*helpful+0.3*harmless"
    here = CombinedScorer(formula, [Scorer(bundle) for bundle in bundles]).score(ITEMS)
    with serve(*bundles, flags=["--combine", formula]) as service:
        with RewardClient(service.url) as client:
            there = client.score(ITEMS, model="safe")
            assert [(score.status, score.score, score.heads) for score in there] == [
                (result.status, result.score, result.heads) for result in here
            ]
            assert (there.model, there.fingerprint, there.engine) == (here.model, here.fingerprint, here.engine)
        items = tmp_path / "items.jsonl"
        items.write_text('{"text": "good fine"}\n')
        command = [str(Path(sys.executable).with_name("plaudit-score")), "--url", service.url, "--model", "safe"]
        done = subprocess.run([*command, str(items)], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        assert f'"score": {here[0].score!r}' in done.stdout
