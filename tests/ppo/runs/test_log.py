import json
import math

import pytest

from plaudit_ppo.errors import CheckpointError
from plaudit_ppo.runs.log import RunLog, read_log


def test_every_iteration_is_one_line_that_is_there_at_once(tmp_path):
    path = tmp_path / "log.jsonl"
    with RunLog(path) as log:
        log.write({"iteration": 1, "objective/kl": 0.25})
        assert json.loads(path.read_text()) == {"iteration": 1, "objective/kl": 0.25}
        log.write({"iteration": 2, "objective/kl": None})
    assert len(path.read_text().splitlines()) == 2


@pytest.mark.parametrize("value", [None, math.nan, math.inf, -math.inf])
def test_what_is_undefined_is_null(tmp_path, value):
    with RunLog(tmp_path / "log.jsonl") as log:
        log.write({"objective/kl": value})
    assert (tmp_path / "log.jsonl").read_text() == '{"objective/kl": null}\n'


def test_a_continued_log_loses_the_lines_after_its_checkpoint_and_a_line_that_was_cut(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text("".join(json.dumps({"iteration": number}) + "\n" for number in (1, 2, 3)) + '{"itera')
    with RunLog(path, done=2) as log:
        log.write({"iteration": 3, "again": True})
    assert read_log(path) == [{"iteration": 1}, {"iteration": 2}, {"iteration": 3, "again": True}]


def test_a_log_is_made_anew_where_nothing_is_done(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"iteration": 1}\n')
    with RunLog(path):
        assert read_log(path) == []


def test_a_log_that_is_none_is_refused(tmp_path):
    (tmp_path / "log.jsonl").write_text("notes\n")
    with pytest.raises(CheckpointError, match=r"log\.jsonl: not the log of a run"):
        RunLog(tmp_path / "log.jsonl", done=1)
