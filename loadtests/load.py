"""A short headless locust run against a service started for it; exit code 1 when any request failed.

make load        or        .venv/bin/python loadtests/load.py --help
"""

import argparse
import subprocess
import sys
from pathlib import Path

from bench import ROOT, minilm_bundle

from plaudit_service.testing import running_service


def main() -> int:
    """Run locust; returns its exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--users", type=int, default=16, help="concurrent users (default: %(default)s)")
    parser.add_argument("--seconds", type=int, default=15, help="length of the run (default: %(default)s)")
    parser.add_argument("--bundle", type=Path, help="bundle to serve (default: the MiniLM encoder, exported for this)")
    options = parser.parse_args()
    bundle = options.bundle or minilm_bundle(ROOT / "runs" / "bench")
    with running_service(bundle) as service:
        command = [sys.executable, "-m", "locust", "-f", str(Path(__file__).with_name("locustfile.py"))]
        command += ["--headless", "--only-summary", "--host", service.url, "--users", str(options.users)]
        command += ["--spawn-rate", str(options.users), "--run-time", f"{options.seconds}s", "--stop-timeout", "30"]
        return subprocess.run(command, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
