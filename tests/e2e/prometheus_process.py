"""A real Prometheus with the configuration and the rules of deploy/prometheus, and the time to wait for it.

Its files are copied with one change: every duration in them is divided by FASTER. A scrape comes every half second,
`[5m]` becomes 10 s and `for: 10m` 20 s. What is asked and every threshold stay as they are, and so do names (`rate5m`).
"""

import json
import re
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path

import httpx2

FASTER = 30
FOLDER = Path(__file__).parents[2] / "deploy" / "prometheus"
_DURATION = re.compile(r"(?<![\w.:])(\d+)([smhd])\b")
_MILLISECONDS = {"s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}


def faster(text):
    """The text of a configuration or of rules with every duration divided by FASTER."""
    return _DURATION.sub(lambda found: f"{int(found[1]) * _MILLISECONDS[found[2]] // FASTER}ms", text)


class Prometheus:
    """A running Prometheus."""

    def __init__(self, url):
        self.url = url

    def query(self, expression):
        """What an expression gives now: a list of (labels, value)."""
        found = self._get("query", query=expression)["result"]
        return [(sample["metric"], float(sample["value"][1])) for sample in found]

    def firing(self):
        """The alerts that fire: name and instance or model, whichever it is about."""
        alerts = [alert["labels"] for alert in self._get("alerts")["alerts"] if alert["state"] == "firing"]
        return {(labels["alertname"], labels.get("instance") or labels.get("model")) for labels in alerts}

    def _get(self, route, **parameters):
        answer = httpx2.get(f"{self.url}/api/v1/{route}", params=parameters, timeout=30)
        answer.raise_for_status()
        return answer.json()["data"]


@contextmanager
def running_prometheus(folder, port, **targets):
    """Runs Prometheus on a port; `targets` are the addresses of each job, underscores for hyphens."""
    for source in [FOLDER / "prometheus.yml", *(FOLDER / "rules").glob("*.yml")]:
        copy = folder / source.relative_to(FOLDER)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(faster(source.read_text()))
    (folder / "targets").mkdir()
    for job, addresses in targets.items():
        (folder / "targets" / f"{job.replace('_', '-')}.yml").write_text(json.dumps([{"targets": addresses}]))
    command = ["prometheus", f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data",
               f"--web.listen-address=127.0.0.1:{port}"]  # fmt: skip
    with (folder / "log").open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        prometheus = Prometheus(f"http://127.0.0.1:{port}")
        try:
            wait_until(lambda: _answers(prometheus), lambda: (folder / "log").read_text()[-2000:])
            yield prometheus
        finally:
            process.terminate()


def _answers(prometheus):
    try:
        return bool(prometheus.query("vector(1)"))
    except httpx2.HTTPError:
        return False


def wait_until(is_so, describe, timeout_s=120):
    """Returns when something is so; fails with a description when it takes too long."""
    end = time.monotonic() + timeout_s
    while not is_so():
        assert time.monotonic() < end, describe()
        time.sleep(0.2)
