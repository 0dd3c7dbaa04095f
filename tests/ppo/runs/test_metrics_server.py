"""What Prometheus reads of a run."""

import math
import re
import socket
import struct
import urllib.error
import urllib.request

import pytest
from prometheus_client.parser import text_string_to_metric_families

from plaudit_ppo import PPOConfig
from plaudit_ppo.errors import ConfigError
from plaudit_ppo.runs import metrics_server
from plaudit_ppo.runs.metrics_server import Figures, prometheus_name, serving_figures
from plaudit_ppo.training.metrics import METRICS


@pytest.fixture
def port():
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


def scrape(port):
    """Name and value of every sample that is ours and no bucket."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        families = text_string_to_metric_families(answer.read().decode())
    samples = (sample for family in families for sample in family.samples)
    return {
        sample.name: sample.value
        for sample in samples
        if sample.name.startswith("plaudit_ppo_") and not sample.name.endswith("_bucket")
    }


def test_names_keep_the_fields_words_and_end_with_their_unit():
    assert prometheus_name("objective/kl") == "plaudit_ppo_objective_kl"
    assert prometheus_name("scoring/exposed_wait_s") == "plaudit_ppo_scoring_exposed_wait_seconds"
    assert prometheus_name("objective/scores") == "plaudit_ppo_objective_scores"


def test_every_metric_of_the_log_is_a_gauge_of_the_latest_iteration_and_waits_add_up(make_trainer, scorer, port):
    scraped = []
    trainer = make_trainer(eval_scorer=scorer, metrics_port=port)
    seen = []

    def look(metrics):
        seen.append(metrics)
        scraped.append(scrape(port))

    trainer.train(on_iteration=look)
    for number, (metrics, samples) in enumerate(zip(seen, scraped, strict=True), start=1):
        for name in METRICS:
            assert samples.pop(prometheus_name(name)) == pytest.approx(
                math.nan if metrics[name] is None else metrics[name], nan_ok=True
            )
        done = seen[:number]
        for name, short in (("time/iteration_s", "iteration"), ("scoring/exposed_wait_s", "exposed_wait")):
            assert samples.pop(f"plaudit_ppo_{short}_seconds_count") == number
            assert samples.pop(f"plaudit_ppo_{short}_seconds_sum") == pytest.approx(sum(one[name] for one in done))
        assert samples == {}
    assert len(scraped) == 2


def test_what_is_undefined_is_nan_and_adds_nothing():
    figures = Figures()
    figures.add({"iteration": 1, "objective/kl": None})
    value = figures.registry.get_sample_value
    assert value("plaudit_ppo_iteration") == 1
    assert math.isnan(value("plaudit_ppo_objective_kl"))
    assert math.isnan(value("plaudit_ppo_lr"))
    assert value("plaudit_ppo_iteration_seconds_count") == 0


def test_nothing_is_served_by_default_nor_by_any_process_but_the_first(port):
    for config, is_first in ((PPOConfig(), True), (PPOConfig(metrics_port=port), False)):
        with serving_figures(config, is_first_process=is_first) as expose:
            expose({})
            with pytest.raises(urllib.error.URLError):
                scrape(port)


def test_a_taken_port_ends_the_run_before_it_begins_with_one_line_and_leaves_the_directory_free(make_trainer, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        message = (
            f"metrics_port: 127.0.0.1:{port} cannot be bound (Address already in use); "
            "choose another port, or 0 for none"
        )
        with pytest.raises(ConfigError, match=re.escape(message)) as refused:
            make_trainer(metrics_port=port).train()
    assert refused.value.exit_code == 2
    assert make_trainer(iterations=1, metrics_port=port).train().iterations == 1


def test_a_run_is_the_same_with_and_without_a_watcher(make_trainer, port, tmp_path):
    kept = []
    for name, watched in (("a", 0), ("b", port)):
        trainer = make_trainer(output=str(tmp_path / name), metrics_port=watched)
        trainer.train(on_iteration=lambda metrics, watched=watched: watched and scrape(watched))
        kept.append((tmp_path / name / "policy" / "model.safetensors").read_bytes())
    assert kept[0] == kept[1]


def test_the_port_is_closed_when_a_run_ends_also_with_an_error(make_trainer, port):
    def stop(metrics):
        assert scrape(port)
        raise KeyError

    with pytest.raises(KeyError):
        make_trainer(metrics_port=port).train(on_iteration=stop)
    with serving_figures(PPOConfig(metrics_port=port), is_first_process=True):
        assert scrape(port)


def test_a_host_may_be_an_ipv6_address(port):
    with (
        serving_figures(PPOConfig(metrics_host="::1", metrics_port=port), is_first_process=True),
        urllib.request.urlopen(f"http://[::1]:{port}/metrics", timeout=10) as answer,
    ):
        assert b"plaudit_ppo_lr" in answer.read()


def test_a_silent_client_and_one_that_leaves_get_no_answer_and_no_word_on_the_terminal(port, monkeypatch, capfd):
    monkeypatch.setattr(metrics_server, "_SILENT_S", 0.1)
    with serving_figures(PPOConfig(metrics_port=port), is_first_process=True):
        with socket.create_connection(("127.0.0.1", port)) as left:
            left.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset, no goodbye
        with socket.create_connection(("127.0.0.1", port), timeout=10) as silent:
            assert silent.recv(1) == b""  # closed, so that its thread has ended
        assert scrape(port)
    assert capfd.readouterr() == ("", "")
