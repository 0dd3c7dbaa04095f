"""How throughput grows with replicas, and what one client's core feeds.

Replicas are the real service with an engine that takes a fixed time per token (`stand_in.py`), so that their number and
not this machine's cores is what limits them. They are asked by clients, and by PPO runs. A client's core is full only
where the service costs nothing: that is measured with servers that answer at once (`instant_server.py`). Past what fits
on one machine, the client's choice of replica is simulated by its own code (`scale_choice.py`).

    .venv/bin/python loadtests/scale.py        or        ... --help
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from client_cost import instant_server
from nemesis.replicas import Replica
from scale_choice import Spread, simulate
from scale_client import SEQUENCES, TOKENS
from servers import cpu_seconds, end_on_sigterm, num_cores, resident_bytes
from tqdm import tqdm

from plaudit_service.testing import write_tiny_bundle

if TYPE_CHECKING:  # it imports torch, which who asks for --help need not wait for
    from scale_ppo import PPORow

# Requests in flight for each replica: one is computed while the next lies there.
IN_FLIGHT = 3
# Requests in flight to servers that answer at once, all together.
IN_FLIGHT_AT_ONCE = 64
# What a row has to reach of linear, and from where on a core, or the machine, is full.
ENOUGH = 0.9
_IDLE_S = 5.0


def main() -> int:
    """Measure and print; exit code 1: a row is below 0.9 of linear, and no core of a client was full, nor all cores."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])

    def numbers(name: str, default: Sequence[int], what: str) -> None:
        parser.add_argument(name, type=int, nargs="*", default=default, help=f"{what} (default: %(default)s)")

    numbers("--replicas", [1, 2, 4, 8, 16, 32], "stand-in replicas")
    numbers("--clients", [1, 4], "clients of each number of replicas")
    numbers("--ppo", [1, 2, 4], "PPO runs at once")
    parser.add_argument("--ppo-replicas", type=int, default=2, help="replicas for each run (default: %(default)s)")
    numbers("--instant", [1, 8, 32], "servers that answer at once, of one client")
    parser.add_argument("--token-s", type=float, default=0.001, help="seconds of a token (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=12.0, help="of each row (default: %(default)s)")
    numbers("--simulated", [10, 32, 100, 316, 1000], "replicas of the simulation")
    options = parser.parse_args()
    figures = measure(options)
    print(describe(figures, options.token_s))
    print(json.dumps({"benchmark": "scale", **asdict(figures)}))
    return int(not all(map(is_enough, [*figures.rows, *figures.ppo])))


@dataclass(frozen=True)
class Row:
    """One measurement.

    Attributes:
        replicas: How many there were.
        clients: Processes that asked.
        sequences_per_s: All clients together.
        of_linear: Of what so many replicas do at most; None where they answer at once.
        busiest_client: CPU time of the busiest client's process over the time that passed.
        machine: CPU time of all processes over that of all cores.
        client_cpu_ms: CPU milliseconds of the clients for a sequence.
        service_cpu_ms: Likewise of the replicas; None where they answer at once.
    """

    replicas: int
    clients: int
    sequences_per_s: float
    of_linear: float | None
    busiest_client: float
    machine: float
    client_cpu_ms: float
    service_cpu_ms: float | None


@dataclass(frozen=True)
class Idle:
    """What replicas take that nobody asks: the largest one's memory, and CPU time of all over the time that passed."""

    replicas: int
    largest_mb: float
    cores: float


@dataclass(frozen=True)
class Figures:
    """All that is measured.

    Attributes:
        rows: Clients and stand-in replicas.
        ppo: PPO runs and stand-in replicas.
        idle: None: no replica was started.
        instant: One client, and servers that answer at once.
        simulated: The client's choice of replica.
    """

    rows: Sequence[Row]
    ppo: "Sequence[PPORow]"
    idle: Idle | None
    instant: Sequence[Row]
    simulated: Sequence[Spread]


def is_enough(row: "Row | PPORow") -> bool:
    """Whether a row is near linear, or says nothing because a core or the machine was full."""
    return row.of_linear is None or max(row.of_linear, row.busiest_client, row.machine) >= ENOUGH


def measure(options: argparse.Namespace) -> Figures:
    """All figures; replicas are started as they are needed."""
    from scale_ppo import against_first, measure_ppo

    instant = [_instant(count, options.seconds) for count in _bar(options.instant, "at once")]
    simulated = [
        simulate(replicas, clients, in_flight=IN_FLIGHT, rounds=20)
        for replicas in _bar(options.simulated, "simulated")
        for clients in (1, 4, 16)
    ]
    with tempfile.TemporaryDirectory() as folder, StandIns(Path(folder), options.token_s) as replicas:
        ppo = [
            measure_ppo(
                replicas.first(runs * options.ppo_replicas), runs, options.seconds, Path(folder) / f"ppo-{runs}"
            )
            for runs in _bar(options.ppo, "PPO")
        ]
        rows = [
            _row(replicas.first(count), clients, options.token_s, options.seconds)
            for count in _bar(sorted(options.replicas), "replicas")
            for clients in options.clients
        ]
        return Figures(rows, against_first(ppo), _idle(replicas.running), instant, simulated)


def _bar(counts: Sequence[int], what: str) -> Iterable[int]:
    return tqdm(counts, desc=what, file=sys.stderr)


class StandIns:
    """Stand-in replicas, which are killed at the end of the block.

    Attributes:
        running: Those that were started.
    """

    def __init__(self, folder: Path, token_s: float) -> None:
        self.running: list[Replica] = []
        self._folder = folder
        self._bundle = write_tiny_bundle(folder / "bundle", max_tokens=TOKENS)
        self._env = {"PLAUDIT_STAND_IN_S": str(token_s)}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for replica in self.running:
            replica.kill()

    def first(self, count: int) -> Sequence[Replica]:
        """So many, started where there are fewer."""
        command = (sys.executable, str(Path(__file__).with_name("stand_in.py")))
        while len(self.running) < count:
            place = self._folder / f"replica-{len(self.running)}"
            place.mkdir()
            flags = ["--num-threads=1", "--no-console"]
            self.running.append(Replica(place.name, [self._bundle], flags, place, command, self._env))
            self.running[-1].start()
        return self.running[:count]


def _row(running: Sequence[Replica], num_clients: int, token_s: float, seconds: float) -> Row:
    before_s = sum(cpu_seconds(replica.pid) for replica in running)
    in_flight = max(1, round(IN_FLIGHT * len(running) / num_clients))
    told = _ask([replica.url for replica in running], num_clients, in_flight, seconds)
    service_s = sum(cpu_seconds(replica.pid) for replica in running) - before_s
    row = _of_clients(len(running), told)
    return replace(
        row,
        of_linear=round(row.sequences_per_s * token_s * TOKENS / len(running), 3),
        service_cpu_ms=round(1000 * service_s / sum(one["all"] for one in told), 3),
    )


def _instant(count: int, seconds: float) -> Row:
    with ExitStack() as stack:
        urls = [stack.enter_context(instant_server()) for _ in range(count)]
        return _of_clients(count, _ask(urls, 1, IN_FLIGHT_AT_ONCE, seconds))


def _ask(urls: Sequence[str], num_clients: int, in_flight: int, seconds: float) -> list[dict[str, float]]:
    """What clients tell that ask at the same time."""
    client = Path(__file__).with_name("scale_client.py")
    command = [sys.executable, str(client), ",".join(urls), str(in_flight), str(seconds)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(num_clients)]
    return [json.loads(process.communicate()[0]) for process in processes]


def _of_clients(num_replicas: int, told: Sequence[Mapping[str, float]]) -> Row:
    """What the clients know."""
    return Row(
        replicas=num_replicas,
        clients=len(told),
        sequences_per_s=round(sum(one["sequences"] / one["seconds"] for one in told), 1),
        of_linear=None,
        busiest_client=round(max(one["cpu_s"] / one["seconds"] for one in told), 3),
        machine=round(max(one["machine_s"] / one["seconds"] for one in told) / num_cores(), 3),
        client_cpu_ms=round(1000 * sum(one["cpu_s"] for one in told) / sum(one["sequences"] for one in told), 3),
        service_cpu_ms=None,
    )


def _idle(running: Sequence[Replica]) -> Idle | None:
    if not running:
        return None
    before_s = sum(cpu_seconds(replica.pid) for replica in running)
    time.sleep(_IDLE_S)
    passed_s = sum(cpu_seconds(replica.pid) for replica in running) - before_s
    largest = max(resident_bytes(replica.pid) for replica in running)
    return Idle(len(running), round(largest / 1e6), round(passed_s / _IDLE_S, 3))


def describe(figures: Figures, token_s: float) -> str:
    """Tables in Markdown, and what is said in sentences."""
    shares = ("of linear", "busiest client", "machine")
    lines = [f"{SEQUENCES} sequences of {TOKENS} tokens a request, {1000 * token_s:g} ms a token, {num_cores()} cores"]
    lines += _table(
        ("replicas", "clients", "sequences/s", *shares, "client, CPU ms/sequence", "service, CPU ms/sequence"),
        [
            (each.replicas, each.clients, each.sequences_per_s, *_shares(each), each.client_cpu_ms, each.service_cpu_ms)
            for each in figures.rows
        ],
    )
    if figures.idle:
        idle = figures.idle
        lines.append(
            f"{idle.replicas} idle replicas: {idle.largest_mb:.0f} MB at most, together {idle.cores} of a core"
        )
    lines += _table(
        ("PPO runs", "replicas", "rollouts/s", *shares, "s/iteration", "waiting for scores"),
        [
            (each.runs, each.replicas, each.rollouts_per_s, *_shares(each), each.iteration_s, f"{each.waiting:.0%}")
            for each in figures.ppo
        ],
    )
    lines += _table(
        ("servers that answer at once", "sequences/s", *shares[1:], "client, CPU ms/sequence"),
        [(each.replicas, each.sequences_per_s, *_shares(each)[1:], each.client_cpu_ms) for each in figures.instant],
    )
    lines += [
        f"one client's core, full, feeds {each.sequences_per_s:.0f} sequences/s over {each.replicas} servers: "
        f"{each.sequences_per_s * TOKENS:.0f} tokens/s"
        for each in figures.instant
        if each.busiest_client >= ENOUGH
    ]
    lines += _table(
        ("simulated replicas", "clients", "of linear", "one choice, ms"),
        [
            (each.num_replicas, each.num_clients, f"{each.of_linear:.2f}", f"{1000 * each.pick_s:.2f}")
            for each in figures.simulated
        ],
    )
    return "\n".join(lines)


def _shares(row: "Row | PPORow") -> tuple[str, str, str]:
    return f"{row.of_linear or 0:.2f}", f"{row.busiest_client:.0%}", f"{row.machine:.0%}"


def _table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    lines = [header, ["---"] * len(header), *rows]
    return ["", *("| " + " | ".join(map(str, line)) + " |" for line in lines), ""]


if __name__ == "__main__":
    end_on_sigterm()
    sys.exit(main())
