"""Every locust scenario for a few seconds against a service started for it; exit code 1 where one breaks its SLO.

make load        or        .venv/bin/python loadtests/load.py --help
"""

import argparse
import subprocess
import sys
from pathlib import Path

from checkpoints import minilm_bundle
from servers import end_on_sigterm, service

# Users and options of each scenario: the offered load is that of two cores.
SCENARIOS = {
    "SteadySingles": ["--users", "2", "--rate", "15"],
    "Groups": ["--users", "2"],
    "MixedLengths": ["--users", "4"],
    "PpoBurst": ["--users", "1", "--slo-p99-s", "10"],
    "Overload": ["--users", "2", "--rate", "300", "--deadline-s", "3"],
}
# Below what a burst of PpoBurst needs there would be 429; above what Overload can fill in its time, none.
QUEUE = 256


def main() -> int:
    """Run locust; returns 1 when a scenario fails."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=int, default=6, help="of each scenario (default: %(default)s)")
    parser.add_argument("--bundle", type=Path, help="bundle to serve (default: the MiniLM encoder, exported for this)")
    parser.add_argument("--only", choices=SCENARIOS, action="append", help="scenario to run; may be repeated")
    options = parser.parse_args()
    bundle = options.bundle or minilm_bundle()
    failed = []
    with service(bundle, flags=["--max-queued-sequences", str(QUEUE)]) as server:
        for scenario in options.only or SCENARIOS:
            print(f"\n{scenario}", flush=True)
            command = [sys.executable, "-m", "locust", "-f", str(Path(__file__).with_name("locustfile.py")), scenario]
            command += ["--headless", "--only-summary", "--host", server.url, "--run-time", f"{options.seconds}s"]
            command += ["--spawn-rate", "100", "--stop-timeout", "30", *SCENARIOS[scenario]]
            if subprocess.run(command, check=False).returncode:
                failed.append(scenario)
    print(f"failed: {', '.join(failed)}" if failed else "every scenario kept its SLO")
    return int(bool(failed))


if __name__ == "__main__":
    end_on_sigterm()
    sys.exit(main())
