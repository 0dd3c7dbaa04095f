import json
import re
from html import unescape
from html.parser import HTMLParser

import pytest
from markupsafe import escape

from plaudit_client import Score
from plaudit_ppo.cli import main
from plaudit_ppo.errors import MaskedShareError
from plaudit_ppo.runs.log import read_log


@pytest.fixture
def run(make_trainer, tmp_path):
    eval_scores = lambda items: [Score("ok", 7.25)] * len(items)  # noqa: E731
    make_trainer(eval_scorer=eval_scores, iterations=3, num_samples=4).train()
    return tmp_path / "run"


def test_a_report_shows_figures_samples_and_settings_of_a_run(run, capsys):
    assert main(["report", str(run)]) == 0
    assert capsys.readouterr().out == f"{run}/report.html\n"
    page = (run / "report.html").read_text()
    log, samples = read_log(run / "log.jsonl"), read_log(run / "samples.jsonl")
    first, last = (f"{log[at]['scoring/score_mean']:.4g}" for at in (0, -1))
    assert f"{first} → {last}" in page
    assert "7.25 → 7.25" in page
    assert page.count("<svg") == 9
    assert [row["iteration"] for row in samples] == [1] * 4 + [3] * 4
    assert page.count("<h3>Iteration ") == 2
    cells = [unescape(cell) for cell in re.findall(r"<bdi>(.*?)</bdi>", page)]
    assert cells[::2] == [row["prompt_text"] for row in samples]
    assert cells[1::2] == [row["completion"] or "(empty)" for row in samples]
    assert '<tr><td>kl_coef</td><td class="number">0.05</td></tr>' in page
    assert '<tr><td>critic</td><td class="number">none</td></tr>' in page  # as TOML has it
    assert '<tr><td>scorer_urls</td><td class="number">[]</td></tr>' in page
    assert "3 iterations, 24 rollouts in " in page
    assert "to go" not in page


def test_a_report_shows_the_samplers_figures_where_they_are_corrected_for(make_trainer, tmp_path):
    make_trainer(iterations=1, sampling_correction="token_truncate").train()
    main(["report", str(tmp_path / "run")])
    page = (tmp_path / "run" / "report.html").read_text()
    for metric in ("val/sampling_kl", "val/sampling_log_ratio_max", "val/sampling_clipped_share"):
        assert f"<!-- {metric} -->" in page


def test_a_report_names_what_stands_out_and_says_nothing_where_nothing_does(make_trainer, tmp_path):
    constant = lambda items: [Score("ok", 1.0)] * len(items)  # noqa: E731
    make_trainer(constant, iterations=3, missing_eos="off").train()
    main(["report", str(tmp_path / "run")])
    page = (tmp_path / "run" / "report.html").read_text()
    assert '<td class="text">Constant scores</td>' in page
    assert "docs/ppo-troubleshooting.md" in page
    log = tmp_path / "run" / "log.jsonl"
    lines = [line | {"scoring/score_std": 0.5, "val/eos_share": 0.9} for line in read_log(log)]
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    main(["report", str(tmp_path / "run")])
    assert "What stands out" not in (tmp_path / "run" / "report.html").read_text()


class Elements(HTMLParser):
    """All elements and attributes of a page."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.attributes = set(), set()
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes |= {(name, value) for name, value in attrs}


HOSTILE = (
    """</bdi></td><script>alert(1)</script>"><img src=x onerror=alert(1)>'<a href=javascript:alert(1)>&lt;b&gt;"""
    "{{ 7 * 7 }}{% include 'report.html' %}{# gone #}"
)


def test_a_report_loads_nothing_from_anywhere_and_takes_no_markup_from_a_rollout(run):
    plain = run.rename(run.with_name("plain"))
    main(["report", str(plain)])
    expected = Elements((plain / "report.html").read_text())
    run = plain.rename(run.with_name("<b>&"))
    rows = read_log(run / "samples.jsonl")
    hostile = [row | {"prompt_text": HOSTILE, "completion": HOSTILE} for row in rows]
    (run / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in hostile))
    main(["report", str(run)])
    page = (run / "report.html").read_text()
    elements = Elements(page)
    assert elements.tags == expected.tags
    assert {name for name, _ in elements.attributes} == {name for name, _ in expected.attributes}
    assert not elements.tags & {"script", "img", "a", "iframe", "object", "link"}
    assert all(value.startswith("#") for name, value in elements.attributes if name in {"src", "href", "xlink:href"})
    assert page.count(str(escape(HOSTILE))) == 2 * len(rows)
    assert ("content", "default-src 'none'; style-src 'unsafe-inline'") in elements.attributes
    assert "@import" not in page
    assert not re.search(r"url\((?!#)", page)


def test_a_run_of_one_iteration_without_samples_has_a_report(make_trainer, tmp_path):
    make_trainer(iterations=1, sample_every=0).train()
    assert main(["report", str(tmp_path / "run")]) == 0
    page = (tmp_path / "run" / "report.html").read_text()
    assert "None were kept (sample_every)" in page
    assert "1 iteration, 8 rollouts in " in page
    assert "<!-- 1 -->" in page  # how the charts name their ticks
    assert "<!-- 0.945 -->" not in page


def test_a_report_of_a_run_that_a_guard_stopped_says_what_is_missing_and_shows_the_rollouts(make_trainer, tmp_path):
    scores = iter([*range(16), *[None] * 100])  # two iterations are scored, then none
    scorer = lambda items: [Score("failed" if (s := next(scores)) is None else "ok", s) for _ in items]  # noqa: E731
    with pytest.raises(MaskedShareError):
        make_trainer(scorer, iterations=9, scorer_concurrency=1).train()
    assert main(["report", str(tmp_path / "run")]) == 0
    page = (tmp_path / "run" / "report.html").read_text()
    assert "7 to go" in page
    assert "<h3>Iteration 3</h3>" in page
    assert '<td class="number">none</td><td class="number">none</td>' in page


def test_a_report_of_a_run_without_a_single_score_has_no_figure_of_it(make_trainer, tmp_path):
    make_trainer(lambda items: [Score("failed", None)] * len(items), max_masked_share=1.0).train()
    main(["report", str(tmp_path / "run")])
    page = (tmp_path / "run" / "report.html").read_text()
    assert "none → none" in page
    assert "100.00%" in page


@pytest.mark.parametrize("content", [None, ""])
def test_a_directory_without_a_run_is_refused(tmp_path, capsys, content):
    if content is not None:
        (tmp_path / "log.jsonl").write_text(content)
    assert main(["report", str(tmp_path)]) == 2
    assert "holds no iteration of a run" in capsys.readouterr().err
