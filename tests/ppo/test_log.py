import json
import math

import pytest

from plaudit_ppo.log import MetricsLog, Progress


def test_every_iteration_is_one_line_that_is_there_at_once(tmp_path):
    path = tmp_path / "log.jsonl"
    with MetricsLog(path) as log:
        log.write({"iteration": 1, "objective/kl": 0.25})
        assert json.loads(path.read_text()) == {"iteration": 1, "objective/kl": 0.25}
        log.write({"iteration": 2, "objective/kl": None})
    assert len(path.read_text().splitlines()) == 2


@pytest.mark.parametrize("value", [None, math.nan, math.inf, -math.inf])
def test_what_is_undefined_is_null(tmp_path, value):
    with MetricsLog(tmp_path / "log.jsonl") as log:
        log.write({"objective/kl": value})
    assert (tmp_path / "log.jsonl").read_text() == '{"objective/kl": null}\n'


def test_progress_is_silent_where_stderr_is_no_terminal(capsys):
    with Progress(1) as progress:
        progress({"objective/kl": 1.0, "scoring/score_mean": None})
    assert capsys.readouterr() == ("", "")
