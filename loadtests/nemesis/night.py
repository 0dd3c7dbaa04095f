"""One run: everything is set up, the nemesis does its work under load, and what was seen is judged."""

import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from nemesis.checker import check, check_call, check_usage
from nemesis.disk import Disk
from nemesis.faults import Nemesis
from nemesis.history import Answered, Call, Counted, History, Truth
from nemesis.load import Load, ask_quietly
from nemesis.models import COMBINATION, Item, Models, make, pool, truth
from nemesis.proxy import Proxy
from nemesis.replicas import SERVE, Replica, usage
from nemesis.schedule import COMBINED, ENGINE, ENGINE_LINK, NUM_REPLICAS, Fault
from nemesis.training import TRAIN, Places, Trainer, train_undisturbed

_SERVICE_FLAGS = (
    "--num-threads=1",
    "--score-cache-size=64",
    "--prefix-cache-bytes=4194304",
    "--drain-timeout-s=20",
    "--max-queued-sequences=2000",
)
_STAND_IN_ENGINE = (sys.executable, str(Path(__file__).parents[1] / "stand_in_engine.py"))
# How long a process may take to let go of connections that were closed.
_REST_S = 20.0


@dataclass(frozen=True)
class Builds:
    """What is run; others than the installed commands where they are broken on purpose."""

    serve: Sequence[str] = SERVE
    train: Sequence[str] = TRAIN


@dataclass(frozen=True)
class Ground:
    """What all runs of a seed share: models, items, and the truth about them.

    Attributes:
        folder: Where everything is.
        seed: Of items and load.
        undisturbed: The output of a PPO run without faults; None: PPO does not run.
        has_engine: Whether PPO's rollouts are sampled by an engine.
    """

    folder: Path
    seed: int
    models: Models
    items: Sequence[Item]
    truth: Truth
    undisturbed: Path | None
    has_engine: bool


def prepare(
    folder: Path, seed: int, say: Callable[[str], None], *, with_training: bool = True, with_engine: bool = False
) -> Ground:
    """Make the models, score every item without faults, and train without faults, all by the installed builds."""
    say("models")
    models = make(folder / "models")
    say("scores without faults")
    items = pool(seed)
    scores = truth(models, items)
    undisturbed = None
    if with_training:
        say("PPO without faults")
        with ExitStack() as stack:
            (folder / "quiet").mkdir()
            replica = Replica("undisturbed", [models.helpful], _SERVICE_FLAGS, folder / "quiet")
            engines = [_engine(models, folder / "quiet-engine")] if with_engine else []
            for each in (replica, *engines):
                each.start()
                stack.callback(each.kill)
            engine_url = engines[0].url if engines else None
            undisturbed = train_undisturbed(Places(models, [replica.url], engine_url), folder)
    return Ground(folder, seed, models, items, scores, undisturbed, with_engine)


@dataclass(frozen=True)
class Run:
    """What a run has shown.

    Attributes:
        history: What was seen.
        violations: What was wrong; empty: nothing.
        restarts: Of replicas and engine, by the nemesis too.
        felt: How many requests felt each fault of a link.
        lasted_s: Until the load ended.
    """

    history: History
    violations: Sequence[str]
    restarts: int
    felt: dict[str, int]
    lasted_s: float


def run(
    ground: Ground,
    disk: Disk,
    faults: Sequence[Fault],
    seconds: float,
    *,
    builds: Builds,
    on_call: Callable[[Call], None],
    on_broken: Callable[[str], None],
) -> Run:
    """Run the load under these faults for so long, or until the first violation.

    Args:
        ground: Models, items, truth.
        disk: For logs and checkpoints.
        faults: The schedule.
        seconds: How long; the last PPO run may take longer.
        builds: What is run.
        on_call: Called with each call that ended.
        on_broken: Called with each violation as soon as it is seen.
    """
    history, began = History(), time.monotonic()
    nemesis: Nemesis | None = None

    def clock() -> float:
        return time.monotonic() - began

    def report(sentence: str) -> None:
        on_broken(sentence)
        if nemesis is not None:
            nemesis.end()

    def broken(sentence: str) -> None:
        history.broken.append(f"at {clock():.2f} s: {sentence}")
        report(history.broken[-1])

    def ended(call: Call) -> None:
        on_call(call)
        for sentence in check_call(call, ground.truth, history.faults)[:1]:
            report(sentence)

    replicas = [_replica(ground, disk, number, builds) for number in range(NUM_REPLICAS)]
    engines = [_engine(ground.models, disk.folder / ENGINE)] if ground.has_engine else []
    with ExitStack() as stack:
        for replica in (*replicas, *engines):
            replica.start()
            stack.callback(replica.kill)
        history.before["the harness"] = usage()
        with ExitStack() as doing:
            ports = {f"link {number}": replica.port for number, replica in enumerate(replicas)}
            ports |= {ENGINE_LINK: engines[0].port} if engines else {}
            links = {name: doing.enter_context(Proxy(port, f"{ground.seed}/{name}")) for name, port in ports.items()}
            urls = [links[f"link {number}"].url for number in range(NUM_REPLICAS)]
            trainer = None
            if ground.undisturbed is not None:
                places = Places(ground.models, urls, links[ENGINE_LINK].url if engines else None)
                folders = (disk.folder / "ppo", ground.undisturbed)
                trainer = doing.enter_context(Trainer(builds.train, places, *folders, history, clock, broken))
            by_name = {replica.name: replica for replica in (*replicas, *engines)}
            nemesis = Nemesis(by_name, links, trainer, disk, ground.models.other, history, clock, broken)
            load = doing.enter_context(Load(urls, ground.items, ground.seed, history, clock, ended))
            began = time.monotonic()  # all are ready: from here on the schedule counts
            nemesis.run(faults, seconds)
            lasted_s = clock()
        _let_rest(history, replicas)
        for replica, url in zip(replicas, urls, strict=True):
            history.answered.append(_answered(replica, load, url))
            _count(history, replica, ground)
    felt = sum((link.done for link in links.values()), Counter[str]())
    restarts = sum(replica.restarts for replica in (*replicas, *engines))
    return Run(history, check(history, ground.truth), restarts, dict(felt), lasted_s)


def _replica(ground: Ground, disk: Disk, number: int, builds: Builds) -> Replica:
    models, name = ground.models, f"replica {number}"
    folder = disk.folder / name.replace(" ", "-")
    folder.mkdir()
    if number == COMBINED:
        flags = (*_SERVICE_FLAGS, f"--combine={COMBINATION}")
        return Replica(name, [models.helpful, models.harmless], flags, folder, builds.serve)
    return Replica(name, [models.helpful], _SERVICE_FLAGS, folder, builds.serve)


def _engine(models: Models, folder: Path) -> Replica:
    folder.mkdir()
    return Replica(ENGINE, [models.policy], (), folder, _STAND_IN_ENGINE)


def _let_rest(history: History, replicas: Sequence[Replica]) -> None:
    """Wait until processes hold what they held before, or for long enough, and write down what they hold then."""
    history.before |= {replica.name: replica.base for replica in replicas}
    end = time.monotonic() + _REST_S
    while True:
        history.after = {"the harness": usage()} | {replica.name: usage(replica.pid) for replica in replicas}
        if not check_usage(history.before, history.after) or time.monotonic() > end:
            return
        time.sleep(0.2)


def _answered(replica: Replica, load: Load, url: str) -> Answered:
    """What a replica counted since it was started the last time, and what of that arrived at the load."""
    answers, results = load.received(url, since=replica.ready_at)
    counters = replica.counters()
    return Answered(replica.name, counters.requests, answers, dict(counters.sequences), dict(results))


def _count(history: History, replica: Replica, ground: Ground) -> None:
    """Ask a replica once more, and hold its counters against what was asked."""
    before = replica.counters()
    requests_asked, got, wrong = ask_quietly(replica.url, ground.items, ground.truth)
    after = replica.counters()
    history.broken += wrong
    sequences = {status: n for status, n in (after.sequences - before.sequences).items() if n}
    requests = after.requests - before.requests
    history.counted.append(Counted(replica.name, requests, requests_asked, sequences, dict(got), after.in_queue))
