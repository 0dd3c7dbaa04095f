"""Ray Serve against one plain `plaudit-serve`, on the same texts, round by round in turn, on this machine.

Each way has two threads of the engine in all: one process with two, one replica with two, two replicas with one each.
Ends with an assertion where a score has other bits than the plain process gives.

    make .venv-ray/.ready && .venv/bin/python loadtests/ray_serve.py
"""

import argparse
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import figures
import yaml
from checkpoints import ROOT, subject
from servers import START_TIMEOUT_S, end_on_sigterm, service
from texts import read_texts
from throughput import measure, one_request, singles

PLAIN = "plaudit-serve, 2 threads"
# Name: route prefix, replicas, threads of each. The CPUs only count for where Ray puts them.
APPLICATIONS = {"Ray Serve, 1 replica x 2 threads": ("/one", 1, 2), "Ray Serve, 2 replicas x 1 thread": ("/two", 2, 1)}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--serve", type=Path, default=ROOT / ".venv-ray/bin/serve", help="Ray Serve's command")
    parser.add_argument("--port", type=int, default=8127, help="TCP port of Serve's proxy")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--texts", type=int, default=96, help="texts of a round")
    options = parser.parse_args()
    end_on_sigterm()
    model = subject("encoder")
    texts = read_texts(model.bundle)
    lots = [texts.singles(lot, options.texts) for lot in range(options.rounds)]
    rows: list[figures.Row] = []
    with (
        service(model.bundle, flags=["--num-threads", "2"]) as plain,
        ray_serve(options.serve, model.bundle, options.port) as served,
    ):
        urls = {PLAIN: plain.url, **served}
        for load, way in (("one request", one_request), ("64 concurrent singles", lambda url: singles(url, 64))):
            ways = {name: way(url) for name, url in urls.items()}
            warm_up = texts.singles(options.rounds, 8)
            rows += measure(f"encoder: {load}", ways, lots, warm_up=warm_up, compared_with=[PLAIN])
    assert all(row.more["largest_difference"] == 0 for row in rows), "a score has other bits through Ray Serve"
    print(f"\n{len(os.sched_getaffinity(0))} cores, {options.rounds} rounds, medians\n{figures.table(rows)}")


@contextmanager
def ray_serve(command: Path, bundle: Path, port: int) -> Iterator[dict[str, str]]:
    """Run the applications on a cluster of this machine until the block ends; their URLs."""
    config = {
        "http_options": {"host": "127.0.0.1", "port": port},
        "applications": [_application(bundle, *each) for each in APPLICATIONS.values()],
    }
    urls = {name: f"http://127.0.0.1:{port}{prefix}" for name, (prefix, *_) in APPLICATIONS.items()}
    with tempfile.TemporaryDirectory() as folder:
        file, log = Path(folder) / "serve.yaml", Path(folder) / "serve.log"
        file.write_text(yaml.safe_dump(config), encoding="utf-8")
        with log.open("wb") as output:
            env = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0"}
            process = subprocess.Popen([command, "run", file], stdout=output, stderr=output, env=env)
        try:
            end = time.monotonic() + START_TIMEOUT_S
            while not all(map(_is_ready, urls.values())):
                if process.poll() is not None or time.monotonic() > end:
                    raise RuntimeError(f"serve run did not start: {log.read_text()[-2000:]}")
                time.sleep(0.2)
            yield urls
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(60)


def _application(bundle: Path, prefix: str, replicas: int, threads: int) -> dict[str, object]:
    return {
        "name": prefix[1:],
        "route_prefix": prefix,
        "import_path": "plaudit_service.ray_serve:build",
        "args": {"bundles": [str(bundle)], "allow_unauthenticated": True, "num_threads": threads},
        "deployments": [{"name": "plaudit", "num_replicas": replicas, "ray_actor_options": {"num_cpus": 1 / replicas}}],
    }


def _is_ready(url: str) -> bool:
    try:
        with urlopen(f"{url}/readyz", timeout=10) as answer:  # noqa: S310  our own http:// URL
            return bool(answer.status == 200)
    except (URLError, OSError):
        return False


if __name__ == "__main__":
    main()
