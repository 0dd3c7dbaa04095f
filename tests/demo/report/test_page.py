import re
from html.parser import HTMLParser

import pytest

from plaudit_demo.report.figures import latency_figure
from plaudit_demo.report.page import make_page
from plaudit_demo.service import Latency
from plaudit_ppo.runs.charts import running_mean

VOID = {"meta", "br", "link", "img"}


class Tags(HTMLParser):
    """Every start tag with its attributes; checks that tags are closed in order."""

    def __init__(self):
        super().__init__()
        self.found, self.open = [], []

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture
def page(results):
    return make_page(results)


def test_the_page_loads_nothing_from_anywhere(page):
    tags = Tags()
    tags.feed(page)
    assert tags.open == []
    assert not {tag for tag, _ in tags.found} & {"script", "link", "img", "iframe", "image", "object"}
    for _, attributes in tags.found:
        for name in ("src", "href", "xlink:href"):
            assert attributes.get(name, "#").startswith("#")
    assert "@import" not in page
    assert all(target.startswith("#") for target in re.findall(r"url\((.*?)\)", page))


def test_every_reference_within_the_page_has_its_target(page):
    targets = set(re.findall(r'\bid="([^"]+)"', page))
    assert set(re.findall(r'href="#([^"]+)"', page)) <= targets
    assert set(re.findall(r"url\(#([^)]+)\)", page)) <= targets


def test_there_are_six_figures_in_the_colours_of_the_page(page):
    assert page.count("<svg") == 6
    assert "currentColor" in page
    assert "#010203" not in page


def test_the_figures_of_the_run_are_told(page):
    text = re.sub(r"<[^>]+>", "", page)
    for told in ("1.00 → 4.00", "1.50 → 3.00", "7.0 nats", "75.0%", "gold itself: 80.0%", "0.012%", "sha256:abc"):
        assert told in text
    assert "the gold reward by +2.12" in text  # (4 - 1) / sqrt(2)


def test_text_that_the_policy_wrote_is_shown_and_never_run(page):
    assert "A &lt;b&gt;text&lt;/b&gt; &amp; 3.0." in page
    assert "<b>text</b>" not in page


def test_the_same_results_give_the_same_page(results, page):
    assert make_page(results) == page


def test_the_running_mean_of_the_last_five():
    assert running_mean([1, 3, 5, 7, 9, 11]) == [1, 2, 3, 4, 5, 7]


def test_the_latency_figure_says_how_many_requests_were_in_each_bucket():
    svg = latency_figure(Latency((0.01, float("inf")), (3, 7), 0.1))
    assert svg.startswith("<svg")
    assert svg.count("<svg") == 1


def test_the_summary_has_the_promised_figures_and_all_times_under_timing(results):
    summary = results.summary()
    assert summary["gold_reward_start"] == 1
    assert summary["gold_reward_end"] == 4
    assert summary["gold_reward_start_std"] == pytest.approx(2**0.5)
    assert summary["rm_score_start"] == 1.5
    assert summary["rm_score_end"] == 3
    assert summary["kl_end"] == 7
    assert summary["completion_tokens_end"] == 5
    assert summary["rm_pair_accuracy"] == 0.75
    assert summary["timing"]["exposed_wait_share"] == 0.000123
    assert summary["timing"]["seconds"] == 12.35
    assert not [name for name in summary if name.endswith("_s") or "seconds" in name]
