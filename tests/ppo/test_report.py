import re

import pytest

from plaudit_client import Score
from plaudit_ppo.cli import main
from plaudit_ppo.log import read_log


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
    last_rows = [row for row in samples if row["iteration"] == 3]
    assert len(last_rows) == 4
    assert len(re.findall(r'<tr><td class="label">\d+</td>', page)) == 4
    assert '<tr><td>kl_coef</td><td class="number">0.05</td></tr>' in page


def test_a_report_loads_nothing_from_anywhere_and_takes_no_markup_from_a_completion(run):
    samples = run / "samples.jsonl"
    samples.write_text(samples.read_text().replace('"completion": "', '"completion": "<script>alert(1)</script>'))
    main(["report", str(run)])
    page = (run / "report.html").read_text()
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert not re.search(r'(?:src|href)="(?!#)', page)
    assert "@import" not in page


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
