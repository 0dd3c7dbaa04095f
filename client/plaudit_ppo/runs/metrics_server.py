"""The figures of a run for Prometheus to scrape, while it goes on. Knows nothing of training."""

import math
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from socket import AF_INET, AF_INET6
from socketserver import ThreadingTCPServer
from typing import Any

from prometheus_client import CollectorRegistry, Gauge, Histogram, MetricsHandler, disable_created_metrics
from prometheus_client.process_collector import ProcessCollector

from plaudit_ppo.config import PPOConfig
from plaudit_ppo.errors import ConfigError
from plaudit_ppo.runs.log import Metrics
from plaudit_ppo.training.held_out import HELD_OUT_METRICS
from plaudit_ppo.training.metrics import METRICS

_SILENT_S = 10.0  # that a silent client keeps its thread
_SECONDS = (0.01, 0.1, 0.5, 1, 5, 10, 30, 60, 120, 300, 600, 1800)
# What adds up over iterations, where gauges would lose those that end between two scrapes.
_HISTOGRAMS = {
    "time/iteration_s": ("iteration_seconds", "Time of an iteration"),
    "scoring/exposed_wait_s": ("exposed_wait_seconds", "Time that an iteration waited for scores"),
}


def prometheus_name(metric: str) -> str:
    """The name of a metric of the log in Prometheus: `scoring/call_s` is `plaudit_ppo_scoring_call_seconds`."""
    return "plaudit_ppo_" + re.sub("_s$", "_seconds", metric.replace("/", "_"))


class Figures:
    """Every metric of the log as a gauge of the latest iteration, NaN while it is undefined, and two histograms.

    From the first evaluation on, its metrics too, as gauges of the latest one.
    """

    def __init__(self) -> None:
        disable_created_metrics()
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._gauges: dict[str, Gauge] = {}
        self._histograms = {
            name: Histogram(f"plaudit_ppo_{short}", meaning, registry=self.registry, buckets=_SECONDS)
            for name, (short, meaning) in _HISTOGRAMS.items()
        }
        self._show({}, METRICS)

    def add(self, metrics: Metrics) -> None:
        """Shows an iteration that has ended, or an evaluation; what is shown of the other stays."""
        self._show(metrics, HELD_OUT_METRICS if "heldout/scores" in metrics else METRICS)
        for name, histogram in self._histograms.items():
            if (value := metrics.get(name)) is not None:
                histogram.observe(value)

    def _show(self, metrics: Metrics, meanings: Mapping[str, str]) -> None:
        for name, meaning in meanings.items():
            if name not in self._gauges:
                self._gauges[name] = Gauge(prometheus_name(name), meaning, registry=self.registry)
            value = metrics.get(name)
            self._gauges[name].set(math.nan if value is None else value)


@contextmanager
def serving_figures(config: PPOConfig, *, is_first_process: bool) -> Iterator[Callable[[Metrics], None]]:
    """Answers `GET /metrics` on `metrics_host` and `metrics_port` in a thread, until the end of the block.

    Args:
        config: the settings; with port 0 nothing is served.
        is_first_process: of a distributed run; the others serve nothing.

    Yields:
        What takes the metrics of each iteration, and of each evaluation.

    Raises:
        ConfigError: the address cannot be bound.
    """
    if not (config.metrics_port and is_first_process):
        yield lambda metrics: None
        return
    figures, host, port = Figures(), config.metrics_host, config.metrics_port
    try:
        server = _Server((host, port), MetricsHandler.factory(figures.registry))
    except OSError as error:
        raise ConfigError(
            f"metrics_port: {host}:{port} cannot be bound ({error.strerror}); choose another port, or 0 for none"
        ) from error
    threading.Thread(target=server.serve_forever, name="metrics", daemon=True).start()
    try:
        yield figures.add
    finally:
        server.shutdown()
        server.server_close()


class _Server(ThreadingTCPServer):
    """What `prometheus_client.start_http_server` lacks: deadlines, and silence about clients.

    Why it is ours: docs/development/decisions/packaging.md.
    """

    allow_reuse_address = True  # at once after a run that was killed
    daemon_threads = True

    def __init__(self, address: tuple[str, int], handler: Any) -> None:
        handler.timeout = _SILENT_S
        self.address_family = AF_INET6 if ":" in address[0] else AF_INET
        super().__init__(address, handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that leaves is nobody's error."""
