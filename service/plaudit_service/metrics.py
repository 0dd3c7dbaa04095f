"""The Prometheus metrics of the service, made once per process and handed down. Knows nothing of who counts."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics
from prometheus_client.gc_collector import GCCollector
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

# Service level objectives are put on these edges, so that a share of requests can be read exactly.
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
TOKENS = (16, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768)
SCORES = (-10.0, -5.0, -3.0, -2.0, -1.0, -0.5, -0.25, 0.0, 0.25, 0.5, 1.0, 2.0, 3.0, 5.0, 10.0)


class Metrics:
    """All metrics; the attribute is the name without the prefix `plaudit_` and the suffix `_total`."""

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for each metric, which no query here uses
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        GCCollector(registry=self.registry)

        self.requests = self._counter("requests", "HTTP requests by outcome", "route", "outcome")
        self.request_seconds = self._histogram("request_seconds", "Time of a request, body to answer", SECONDS, "route")
        self.queue_seconds = self._histogram("queue_seconds", "Time that a sequence waited for the engine", SECONDS)
        self.tokenize_seconds = self._histogram("tokenize_seconds", "Time of tokenizing a request", SECONDS)
        self.infer_seconds = self._histogram("infer_seconds", "Time of one batch in the engine", SECONDS)
        self.engine_seconds = self._counter(
            "engine_seconds",
            "Time of all calls of the engine: alone, with all its threads, or shared, beside others",
            "threads",
        )
        self.engine_calls = self._gauge("engine_calls", "Largest number of engine calls at the same time")
        self.sequences = self._counter("sequences", "Sequences by status", "model", "status")
        self.queued_sequences = self._gauge("queued_sequences", "Sequences that wait for the engine")
        self.queued_tokens = self._gauge("queued_tokens", "Tokens that wait for the engine")
        self.batches_taken_back = self._counter(
            "batches_taken_back", "Ready batches that were put back for another client's turn"
        )
        self.waiting_requests = self._gauge("waiting_requests", "Requests of dialects that are not in the queue yet")
        self.running_sequences = self._gauge("running_sequences", "Sequences in the engine now")
        self.batch_sequences = self._histogram("batch_sequences", "Sequences of a batch", COUNTS)
        self.batch_tokens = self._histogram("batch_tokens", "Padded tokens of a batch", TOKENS)
        self.padding_tokens = self._counter("padding_tokens", "Padding that was computed")
        self.computed_tokens = self._counter("computed_tokens", "Tokens that were computed, without padding")
        self.shared_tokens = self._counter("shared_tokens", "Tokens that sequences shared, computed once or not at all")
        self.score_cache_hits = self._counter("score_cache_hits", "Sequences answered from the cache of exact scores")
        self.rejected = self._counter("rejected", "Requests that were not admitted", "reason")
        self.cancelled = self._counter("cancelled", "Sequences that left the queue because nobody waited for them")
        self.expired = self._counter("expired", "Sequences that left the queue at their deadline")
        self.truncated = self._counter("truncated", "Sequences that were scored without some of their tokens")
        self.score = self._histogram("score", "Scores that were answered", SCORES, "model")
        self.score_mean = self._gauge("score_mean", "Mean of the latest 1,024 scores; NaN before the first", "model")
        self.score_std = self._gauge("score_std", "Standard deviation of the latest 1,024 scores", "model")
        self.score_length_correlation = self._gauge(
            "score_length_correlation",
            "Correlation of the latest 1,024 scores with the lengths of their texts; near 1, the model rewards length",
            "model",
        )
        self.batch_invariant = self._gauge(
            "batch_invariant", "1: at start, every golden text got the same bits alone, batched and continued", "model"
        )
        self.parity_ok = self._gauge(
            "parity_ok", "1: at start, every golden text got its reference score within the tolerance", "model"
        )
        self.parity_max_abs_diff = self._gauge(
            "parity_max_abs_diff",
            "At start, the largest distance of served from reference score over the golden texts",
            "model",
        )
        self.model_info = self._gauge(
            "model_info", "1 for each loaded model", "model", "fingerprint", "precision", "runtime"
        )
        self.remote_ready = self._gauge(
            "remote_ready", "1: this engine behind HTTP gave the reference scores and gets requests", "model", "engine"
        )
        self.remote_losses = self._counter(
            "remote_losses",
            "Times that an engine behind HTTP was lost: down, hangs, overloaded, restarted, wrong",
            "model",
            "engine",
            "reason",
        )
        self.ready = self._gauge("ready", "1: the service answers /score")

    def _counter(self, name: str, help_text: str, *labels: str) -> Counter:
        return Counter(f"plaudit_{name}", help_text, labels, registry=self.registry)

    def _gauge(self, name: str, help_text: str, *labels: str) -> Gauge:
        return Gauge(f"plaudit_{name}", help_text, labels, registry=self.registry)

    def _histogram(self, name: str, help_text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
        return Histogram(f"plaudit_{name}", help_text, labels, registry=self.registry, buckets=buckets)
