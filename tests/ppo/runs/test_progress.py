import sys

from plaudit_ppo.runs.progress import Progress

METRICS = {
    "iteration": 2,
    "scoring/score_mean": None,
    "objective/kl": 1.23456,
    "tokens/completion_mean": 12.0,
    "scoring/exposed_wait_s": 0.5,
    "time/iteration_s": 2.0,
    "scoring/masked_share": 0.0,
}


def test_progress_is_silent_where_stderr_is_no_terminal(capsys):
    with Progress(2) as progress:
        progress(METRICS)
    assert capsys.readouterr() == ("", "")


def test_progress_shows_the_few_numbers_that_matter_on_a_terminal(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with Progress(4) as progress:
        progress(METRICS | {"iteration": 4, "eval/scores": 0.5, "scoring/masked_share": 0.25})
    last = capsys.readouterr().err.split("\r")[-1].rstrip()
    assert last.startswith("PPO 4/4 |")
    assert last.endswith(", masked 25%, score -, eval 0.5, KL 1.23, wait 25%, length 12")
