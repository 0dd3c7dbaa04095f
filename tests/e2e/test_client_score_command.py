"""`plaudit-score` against real replicas."""

import json
import signal
import subprocess
import sys
from pathlib import Path

from replica_processes import ReplicaProcess

from plaudit_service.testing import score_by_hand

COMMAND = Path(sys.executable).with_name("plaudit-score")


def run(replicas, *arguments, lines):
    urls = ",".join(replica.url for replica in replicas)
    stdin = "".join(json.dumps(line) + "\n" for line in lines)
    done = subprocess.run([COMMAND, "--url", urls, *arguments], input=stdin, capture_output=True, text=True)
    return done, [json.loads(line) for line in done.stdout.splitlines()]


def test_every_form_of_line_is_scored_as_by_hand(tiny_bundle):
    lines = [
        "good fine",
        {"id": "x", "prompt": "good", "completion": " bad"},
        {"prompt": "fine", "completions": [" good", " awful"]},
        {"messages": [{"role": "user", "content": "good"}, {"role": "assistant", "content": "fine"}]},
        {"token_ids": [1, 4, 5]},
        {"chosen": "good", "rejected": "bad"},
        {"chosen": "awful", "rejected": "fine"},
    ]
    with ReplicaProcess(tiny_bundle()) as replica:
        done, answers = run([replica], lines=lines)
    assert done.returncode == 0
    assert [answer["line"] for answer in answers] == list(range(1, 8))
    text, pair, group, chat, ids, right, wrong = answers
    assert [answer["score"] for answer in (text, pair, chat, ids)] == [1.5, 0.0, 1.5, 1.5]
    assert [result["score"] for result in group["results"]] == [1.5, -1.75]
    assert (right["chosen"]["score"], right["rejected"]["score"]) == (1.0, -1.0)
    assert (wrong["chosen"]["score"], wrong["rejected"]["score"]) == (-2.25, 0.5)
    assert done.stderr.splitlines()[-1] == "plaudit-score: pairs: 2, scored: 2, pair accuracy: 0.5000"


USER = [{"role": "user", "content": "fine", "name": None}]
GOOD, BAD = ([{"role": "assistant", "content": word, "tool_calls": None}] for word in ("good", "bad"))


def test_pairs_in_trls_preference_formats_are_scored_and_their_accuracy_is_told(tiny_bundle):
    lines = [
        {"prompt": "fine", "chosen": " good", "rejected": " bad"},
        {"prompt": USER, "chosen": GOOD, "rejected": BAD},
        {"chosen": USER + GOOD, "rejected": USER + BAD},
        {"prompt": "fine", "chosen": USER + GOOD, "rejected": USER + BAD},
        {"prompt": USER, "chosen": "bad", "rejected": "good"},
    ]
    with ReplicaProcess(tiny_bundle()) as replica:
        done, answers = run([replica], lines=lines)
        refused, _ = run([replica], lines=[{"prompt": USER, "chosen": USER + GOOD, "rejected": USER + BAD}])
    assert done.returncode == 0
    scores = [(answer["chosen"]["score"], answer["rejected"]["score"]) for answer in answers]
    assert scores == [(1.5, -0.5)] * 4 + [(-0.5, 1.5)]
    assert done.stderr.splitlines()[-1] == "plaudit-score: pairs: 5, scored: 5, pair accuracy: 0.8000"
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert "stdin:1.chosen: begins with the prompt, so the prompt would be scored twice" in refused.stderr


def test_a_field_that_no_template_reads_is_named_and_one_that_is_none_changes_nothing(tiny_bundle):
    with ReplicaProcess(tiny_bundle()) as replica:
        done, (answer,) = run([replica], lines=[{"messages": USER + GOOD}])
        refused, _ = run([replica], lines=[{"messages": [{"role": "user", "content": "fine", "id": 7}]}])
    assert (done.returncode, answer["score"]) == (0, 1.5)
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert "stdin:1.messages[0].id: not a field of a message; leave it out" in refused.stderr


def test_the_best_of_each_group_is_written(tiny_bundle):
    with ReplicaProcess(tiny_bundle()) as replica:
        done, (best,) = run([replica], "--best-of", lines=[{"prompt": "fine", "completions": [" bad", " good", " ok"]}])
    assert done.returncode == 0
    assert (best["prompt"], best["completion"], best["index"], best["score"]) == ("fine", " good", 1, 1.5)


def test_a_text_over_the_limit_is_exit_1_unless_it_may_be_truncated(tiny_bundle):
    with ReplicaProcess(tiny_bundle()) as replica:
        lines = ["good", "fine " * 70 + "good"]  # the limit is 64 tokens, BOS included
        done, answers = run([replica], lines=lines)
        assert (done.returncode, [answer["status"] for answer in answers]) == (1, ["ok", "too_long"])
        done, answers = run([replica], "--truncation", "left", lines=lines)
        assert (done.returncode, answers[1]["score"], answers[1]["truncated"]) == (
            0,
            score_by_hand("fine " * 62 + "good"),
            True,
        )


def test_a_replica_that_is_killed_while_a_file_is_scored_changes_no_line(tiny_bundle, tmp_path):
    bundle, target = tiny_bundle(), tmp_path / "out.jsonl"
    texts = [" ".join(["good", "fine", "awful"][: 1 + number % 3]) for number in range(3000)]
    with ReplicaProcess(bundle) as stays, ReplicaProcess(bundle) as dies:
        urls = f"{stays.url},{dies.url}"
        command = [COMMAND, "-o", target, "--url", urls, "--batch-size", "4"]
        with subprocess.Popen(command, stdin=subprocess.PIPE, text=True) as process:
            for text in texts[:1500]:
                process.stdin.write(json.dumps(text) + "\n")
            process.stdin.flush()
            while dies.count_answers(200) == 0:
                assert process.poll() is None
            dies.send(signal.SIGKILL)
            for text in texts[1500:]:
                process.stdin.write(json.dumps(text) + "\n")
            process.stdin.close()
            assert process.wait() == 0
    scores = [json.loads(line)["score"] for line in target.read_text().splitlines()]
    assert scores == [score_by_hand(text) for text in texts]
