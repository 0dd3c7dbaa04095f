import jinja2
import pytest
from markupsafe import Markup

from plaudit_ppo.runs.charts import series_figure
from plaudit_ppo.runs.page import render_page


@pytest.fixture
def template(tmp_path):
    path = tmp_path / "one.html"
    path.write_text(
        """{% extends "frame.html" %}{% from "parts.html" import figure %}
{% block title %}{{ text }}{% endblock %}{% block heading %}{{ text }}{% endblock %}
{% block subtitle %}{{ text }}{% endblock %}
{% block body %}{% call figure(text, chart) %}{{ text }}{% endcall %}{% endblock %}"""
    )
    return path


def test_text_is_escaped_wherever_it_stands_and_a_chart_is_not(template):
    chart = series_figure([1.0, 2.0], label="score", color="#333333")
    page = render_page(template, text="<b>&", chart=chart)
    assert "<b>" not in page
    assert page.count("&lt;b&gt;&amp;") == 5
    assert chart in page


def test_what_did_not_come_from_a_chart_is_no_chart(template):
    page = render_page(template, text="", chart="<svg onload=alert(1)></svg>")
    assert "<svg" not in page


def test_text_in_a_chart_is_no_markup():
    chart = series_figure([1.0], label="--><script>alert(1)</script>", color="#333333")
    assert isinstance(chart, Markup)
    assert "<script" not in chart


def test_a_name_without_a_value_is_an_error_and_no_gap_in_the_page(template):
    with pytest.raises(jinja2.UndefinedError, match="chart"):
        render_page(template, text="")
