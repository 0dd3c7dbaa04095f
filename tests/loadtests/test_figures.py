import json

import figures
import pytest
from figures import Row
from hypothesis import given
from hypothesis import strategies as st

ROWS = [
    Row("encoder: one request", "in process", 50.0, "sequences/s", {"in process": 1.0}),
    Row("encoder: one request", "service", 49.123456789, "sequences/s", {"in process": 0.98}, {"cost": 0.123456789}),
    Row("start", "service", 2.0, "s"),
]


def test_a_percentile_is_the_value_of_nearest_rank():
    values = [5.0, 1.0, 4.0, 2.0, 3.0]
    assert [figures.percentile(values, share) for share in (0.0, 0.2, 0.21, 0.5, 0.99, 1.0)] == [1, 1, 2, 3, 5, 5]


@given(st.lists(st.floats(allow_nan=False), min_size=1), st.floats(0, 1))
def test_at_least_the_share_of_all_values_does_not_exceed_the_percentile(values, share):
    limit = figures.percentile(values, share)
    assert limit in values
    assert sum(value <= limit for value in values) >= share * len(values)


def test_a_percentile_of_nothing_is_an_error():
    with pytest.raises(ValueError, match="no values"):
        figures.percentile([], 0.5)


def test_a_ratio_is_the_median_of_ratios_inside_a_round_and_not_the_ratio_of_medians():
    assert figures.median_ratio([10.0, 20.0, 90.0], [20.0, 20.0, 30.0]) == 1.0  # 0.5, 1, 3


def test_rounds_that_do_not_pair_are_an_error():
    with pytest.raises(ValueError, match="argument 2"):
        figures.median_ratio([1.0, 2.0], [1.0])


def test_a_server_that_was_not_measured_gives_no_column():
    rates = {"a": [1.0, 2.0, 3.0], "b": [2.0, 2.0, 2.0]}
    rows = figures.rate_rows("part", rates, compared_with=["b", "c"], more={"a": {"cost": 1.0}})
    assert rows == [
        Row("part", "a", 2.0, "sequences/s", {"b": 1.0}, {"cost": 1.0}),
        Row("part", "b", 2.0, "sequences/s", {"b": 1.0}),
    ]


def test_the_table_has_a_line_for_each_row_and_a_column_for_each_divisor():
    assert figures.table(ROWS).splitlines() == [
        "part                  server      value  unit         ÷ in process",
        "encoder: one request  in process     50  sequences/s         1.000",
        "encoder: one request  service     49.12  sequences/s         0.980",
        "start                 service         2  s",
    ]


def test_json_keeps_five_digits_of_each_figure():
    line = json.loads(json.dumps(figures.as_json(ROWS)))
    assert line[1] == {
        "part": "encoder: one request",
        "server": "service",
        "value": 49.123,
        "unit": "sequences/s",
        "ratios": {"in process": 0.98},
        "more": {"cost": 0.12346},
    }


def test_the_plot_is_a_png(tmp_path):
    figures.draw(ROWS, tmp_path / "new" / "bench.png", "title")
    assert (tmp_path / "new" / "bench.png").read_bytes().startswith(b"\x89PNG")
