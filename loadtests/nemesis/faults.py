"""The nemesis: does what a schedule says, each target in a thread of its own, and writes down when."""

import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from nemesis.disk import Disk
from nemesis.history import Happened, History
from nemesis.proxy import Proxy
from nemesis.replicas import Replica
from nemesis.schedule import Fault
from nemesis.training import Trainer


class Nemesis:
    """Applies faults.

    Args:
        replicas: By the name of the target; the engine, too, where there is one.
        links: Proxies, likewise.
        trainer: None: there is none, and its faults are left out.
        disk: Of logs and checkpoints.
        other: Another reward model.
        history: Where faults are written down.
        clock: Seconds since the start.
        on_broken: Called with each sentence about what must not happen.
    """

    def __init__(
        self,
        replicas: Mapping[str, Replica],
        links: Mapping[str, Proxy],
        trainer: Trainer | None,
        disk: Disk,
        other: Path,
        history: History,
        clock: Callable[[], float],
        on_broken: Callable[[str], None],
    ) -> None:
        self._replicas, self._links, self._trainer, self._disk, self._other = replicas, links, trainer, disk, other
        self._history, self._clock, self._on_broken = history, clock, on_broken
        self._over = threading.Event()
        self._lock = threading.Lock()

    def run(self, faults: Sequence[Fault], until_s: float) -> None:
        """Apply all faults, then wait until the time is over or `end` is called; everything is healed then."""
        lanes: dict[str, list[Fault]] = {}
        for fault in faults:
            lanes.setdefault(fault.target, []).append(fault)
        threads = [threading.Thread(target=self._lane, args=(lane,), name=target) for target, lane in lanes.items()]
        for thread in threads:
            thread.start()
        self._over.wait(max(0.0, until_s - self._clock()))
        self._over.set()
        for thread in threads:
            thread.join()
        for replica in self._replicas.values():
            self._mend(replica, "the end")

    def end(self) -> None:
        """Let `run` end now."""
        self._over.set()

    def _lane(self, faults: Sequence[Fault]) -> None:
        for fault in faults:
            if self._over.wait(max(0.0, fault.at_s - self._clock())):
                return
            began_s = self._clock()
            with self._lock:
                self._history.faults.append(Happened(began_s, began_s + fault.lasts_s, fault.target, fault.kind))
            try:
                if fault.target in self._replicas:
                    self._replica_fault(self._replicas[fault.target], fault)
                elif fault.target in self._links:
                    self._link_fault(self._links[fault.target], fault)
                elif fault.target == "trainer":
                    self._trainer_fault(fault)
                elif fault.target == "disk":
                    with self._disk.full():
                        self._last(fault)
            except Exception as error:  # noqa: BLE001  a replica that does not start again, say: the run is to say so, and end
                self._on_broken(f"{fault}: {type(error).__name__}: {error}")
                return

    def _last(self, fault: Fault) -> None:
        self._over.wait(fault.lasts_s)

    def _replica_fault(self, replica: Replica, fault: Fault) -> None:
        self._mend(replica, fault.kind)
        match fault.kind:
            case "kill":
                replica.kill()
                self._last(fault)
                replica.start()
            case "drain":
                self._drain(replica)
                self._last(fault)
                replica.start()
            case "other-bundle":
                self._drain(replica)
                replica.start([self._other])
                self._last(fault)
                self._drain(replica)
                replica.start()
            case "stop":
                replica.stop()
                self._last(fault)
                replica.go_on()
            case _:
                how = {
                    "descriptors": replica.few_descriptors,
                    "memory": replica.little_memory,
                    "clock": replica.clock_ahead,
                }[fault.kind]
                with how():
                    self._last(fault)
                if fault.kind == "memory" and replica.exit_code is not None:
                    self._restart(replica, f"ended with exit code {replica.exit_code} for lack of memory")

    def _drain(self, replica: Replica) -> None:
        code = replica.drain()
        if code != 0:
            self._on_broken(f"{replica.name}: exit code {code} after SIGTERM, 0 is promised")

    def _mend(self, replica: Replica, before: str) -> None:
        """A replica that ended although nobody ended it is a fault of its own."""
        if replica.exit_code is not None:
            self._on_broken(f"{replica.name}: ended by itself before {before}, exit code {replica.exit_code}")
            self._restart(replica, "ended by itself")

    def _restart(self, replica: Replica, why: str) -> None:
        began_s = self._clock()
        replica.start()
        with self._lock:
            self._history.seen.append(Happened(began_s, self._clock(), replica.name, f"{why}; started again"))

    def _link_fault(self, link: Proxy, fault: Fault) -> None:
        link.fault = fault.kind
        try:
            self._last(fault)
        finally:
            link.fault = None

    def _trainer_fault(self, fault: Fault) -> None:
        trainer = self._trainer
        if trainer is None:
            return
        ends = {"kill": signal.SIGKILL, "terminate": signal.SIGTERM}
        if fault.kind == "kill-writing":  # as soon as it begins a checkpoint, or when the fault's time is over
            trainer.wait_for_checkpoint(fault.lasts_s, self._over)
            with trainer.ended(signal.SIGKILL):
                return
        with trainer.stopped() if fault.kind == "stop" else trainer.ended(ends[fault.kind]):
            self._last(fault)
