"""The service on Ray Serve: one `Service` in each replica, on as many machines as there are. Alone in knowing Ray.

A Serve config names it as `import_path: plaudit_service.ray_serve:build`; deploy/ray has one, and says how to run it.
"""

import argparse
import math
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

import ray
from ray import serve
from ray.serve.config import AutoscalingContext

from plaudit_service import logs
from plaudit_service.bundles.bundle import load_bundle
from plaudit_service.bundles.exporting import bundle_directories
from plaudit_service.errors import SettingsError
from plaudit_service.http.app import build_app
from plaudit_service.http.asgi import App, Message, Receive, Scope, Send
from plaudit_service.serving.service import Service
from plaudit_service.settings import Settings, from_arguments

# What a replica gets to finish, beyond --drain-timeout-s, before Serve kills it.
_SHUTDOWN_GRACE_S = 15.0

# Sockets are Serve's here.
_SETTINGS_OF_SERVE = {
    "host": "http_options.host",
    "port": "http_options.port",
    "keep_alive_s": "http_options.keep_alive_timeout_s",
    "tls_certificate_file": "http_options.ssl_certfile",
    "tls_key_file": "http_options.ssl_keyfile",
    "max_connections": "a proxy before Ray",
    "max_header_bytes": "a proxy before Ray",
    "header_timeout_s": "a proxy before Ray",
}


def build(args: Mapping[str, Any]) -> serve.Application:
    """The Serve application.

    Args:
        args: `bundles`, directories on every node or hub ids, of bundles or checkpoints; and settings of
            `plaudit-serve` by their names, which win over the `PLAUDIT_*` variables of `runtime_env`.

    Raises:
        SettingsError: an argument is missing, unknown, or cannot be used.
    """
    given = dict(args)
    bundles = given.pop("bundles", None)
    if not isinstance(bundles, list) or not bundles:
        raise SettingsError("args.bundles: give a list of bundle directories or hub ids")
    names = [setting.name for setting in fields(Settings)]
    for name in given:
        if name in _SETTINGS_OF_SERVE:
            raise SettingsError(f"args.{name}: the sockets are Ray Serve's; set {_SETTINGS_OF_SERVE[name]} instead")
        if name not in names:
            raise SettingsError(f"args.{name}: is neither `bundles` nor a setting of plaudit-serve")
    settings = from_arguments(argparse.Namespace(**{name: given.get(name) for name in names}))
    deployment = serve.deployment(
        serve.ingress()(Replica),
        name="plaudit",
        # A replica makes its batches of what it has, so it needs many requests at once; those that wait in Serve's
        # proxies can still go to a replica that is added.
        max_ongoing_requests=256,
        max_queued_requests=1024,
        backpressure_config={"status_code": 429, "retry_after_s": 1},
        graceful_shutdown_timeout_s=settings.drain_timeout_s + _SHUTDOWN_GRACE_S,
    )
    return deployment.bind(tuple(bundles), settings)


class QueuedTokens:
    """Autoscaling policy: enough replicas that each has `target_tokens` queued; none of those that work is taken away.

    Args:
        target_tokens: Queued tokens for which one replica is there.
    """

    def __init__(self, target_tokens: float) -> None:
        self.target_tokens = target_tokens

    def __call__(self, context: AutoscalingContext) -> tuple[float, dict[str, Any]]:
        """How many replicas are wanted; Serve applies its bounds, factors and delays."""
        metrics = context.aggregated_metrics or {}
        queued_tokens = sum(metrics.get("queued_tokens", {}).values())
        busy_replicas = sum(metrics.get("busy", {}).values())
        return max(queued_tokens / self.target_tokens, busy_replicas), {}


class Replica:
    """One process. Ready when the golden texts have their scores.

    Args:
        bundles: Directories of this node, or hub ids; a checkpoint is exported by the first replica of a node.
        settings: What the operator set; `num_threads` 0: as many as Ray gave the replica CPUs.

    Raises:
        SettingsError, BundleError, ExportFailed: it cannot serve them.
    """

    def __init__(self, bundles: Sequence[str], settings: Settings) -> None:
        settings.check_engine()
        self._api_keys = settings.api_keys()
        if not self._api_keys and not settings.allow_unauthenticated:
            raise SettingsError(
                "Ray Serve's proxies may answer other machines, and there is no API key; give PLAUDIT_API_KEYS in "
                "runtime_env.env_vars, or args.api_key_file, or args.allow_unauthenticated: true"
            )
        if settings.num_threads == 0:
            cpus = ray.get_runtime_context().get_assigned_resources().get("CPU", 0)
            settings = replace(settings, num_threads=math.ceil(cpus))
        logs.configure()
        directories = bundle_directories(bundles, settings.export_options, settings.export_cache)
        self._service = Service([load_bundle(directory) for directory in directories], settings)
        self._gauges: dict[str, Any] = {}

    def __serve_build_asgi_app__(self) -> App:
        """The application that Serve answers with; Serve runs its life cycle."""
        return _behind_proxy(build_app(self._service, self._api_keys))

    async def check_health(self) -> None:
        """Serve asks before it sends the first request, and every `health_check_period_s` then.

        Raises:
            RuntimeError: the scores are wrong, or the engine hangs: Serve replaces the replica. Not where servers of
                their own compute: no other replica would cure them.
        """
        await self._service.wait_until_checked()
        waits_for_servers = self._service.alive and self._service.settings.runtime == "vllm"
        if self._service.not_ready is not None and not waits_for_servers:
            raise RuntimeError(self._service.not_ready)
        self._show_metrics()

    def record_autoscaling_stats(self) -> dict[str, float]:
        """What `QueuedTokens` decides by; Serve averages it over `look_back_period_s`."""
        value = self._service.metrics.registry.get_sample_value
        queued_tokens, running = value("plaudit_queued_tokens"), value("plaudit_running_sequences")
        return {"queued_tokens": queued_tokens or 0.0, "busy": 1.0 if running else 0.0}

    def _show_metrics(self) -> None:
        """Copy every sample to Ray's metrics, which name the replica; `/metrics` behind a proxy is some replica's."""
        for family in self._service.metrics.registry.collect():
            for sample in family.samples:
                if not sample.name.startswith("plaudit_") or not math.isfinite(sample.value):
                    continue
                if sample.name not in self._gauges:
                    gauge = serve.metrics.Gauge(sample.name, family.documentation, tuple(sample.labels))
                    self._gauges[sample.name] = gauge
                self._gauges[sample.name].set(sample.value, tags=sample.labels)


def _behind_proxy(app: App) -> App:
    """An application at Serve's `route_prefix`; the proxy adds X-Request-Id to the answers by itself."""

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return

        async def send_without_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = message.get("headers", ())
                message = {**message, "headers": [pair for pair in headers if pair[0] != b"x-request-id"]}
            await send(message)

        path = scope["path"].removeprefix(scope.get("root_path", ""))
        await app({**scope, "path": path or "/"}, receive, send_without_id)

    return application
