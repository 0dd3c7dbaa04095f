"""What plaudit does on a GPU, in one command: parity, speed beside transformers, costs of calls, memory, a service.

Every part runs in a process of its own with a time limit. What it measured is in the report at once; a part that
raises, crashes or hangs is reported, and the others run. Bundles of random models are made first, on the CPU, and kept.
Writes gpu-check.json and gpu-check.html. Exit code 1: a part failed; 2: the device cannot be used, and nothing was
measured.

    make gpu-check        or        .venv-gpu/bin/python loadtests/gpu_check.py --help
"""

import argparse
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from gpu_measuring import MODELS, PRECISIONS, SIZES, TRANSFORMERS, Setting
from servers import end_on_sigterm
from texts import ROOT

from plaudit_ppo.runs.page import render_page

WORK = ROOT / "runs" / "gpu-check"
PAGE = Path(__file__).with_suffix(".html")
PROGRAM = Path(__file__).with_name("gpu_steps.py")
DEVICE_LIMIT_S = 120.0  # to say that it can be used
BF16_NEEDS_CUDA = "bf16 runs on CUDA devices only"

Status = Literal["ok", "failed", "skipped"]


@dataclass(frozen=True)
class Step:
    """A measurement, made of parts; `limit_s` is that of one part."""

    title: str
    parts: Callable[[Setting], Sequence[str]]
    limit_s: float


def _once(setting: Setting) -> Sequence[str]:
    return [setting.precision]


STEPS: Mapping[str, Step] = {
    "versions": Step("Versions and providers", lambda _: ["machine"], 60),
    "bundles": Step(
        "Bundles",
        lambda setting: [f"{model}-{each}" for model in exported(setting) for each in PRECISIONS],
        1800,
    ),
    "parity": Step(
        "Parity, by the check that a service makes at its start",
        lambda setting: [f"{model}-{each}" for model in setting.models for each in PRECISIONS],
        60,
    ),
    "costs": Step("Milliseconds by tokens, and the costs of the queue", _once, 120),
    "prefix": Step("Reuse of prefixes", _once, 90),
    "throughput": Step("Tokens per second", lambda _: [*PRECISIONS, TRANSFORMERS], 120),
    "memory": Step("Memory", lambda _: PRECISIONS, 60),
    "service": Step("A service under load, its p50 and p99", _once, 180),
}


@dataclass(frozen=True)
class Part:
    """What became of one part; `error` is one line: why it failed or was skipped."""

    step: str
    part: str
    status: Status
    seconds: float = 0.0
    error: str | None = None
    figures: Mapping[str, Any] = field(default_factory=dict)


def main() -> int:
    """Run the parts, and write the report after each; returns the exit code."""
    options = parse()
    setting = Setting(
        options.device, options.size, options.precision, options.seconds, options.models, str(options.work.resolve())
    )
    options.output.mkdir(parents=True, exist_ok=True)
    if options.only != ["bundles"]:
        device = run_part("device", "device", setting, DEVICE_LIMIT_S, options.output)
        if device.error is not None:
            print(f"gpu_check: {device.error}", file=sys.stderr)
            return 2
    started = datetime.now(UTC).isoformat(timespec="seconds")
    head = {"check": "plaudit gpu-check", "started": started, "limit_s": options.limit_s, **asdict(setting)}
    done: list[Part] = []
    spent_s = 0.0
    for step, part in parts_of(options.only, setting):
        limit_s = STEPS[step].limit_s
        if step != "bundles":
            limit_s = min(limit_s, options.limit_s - spent_s)
        reason = not_run(part, step, setting)
        if reason is None and limit_s <= 0:
            reason = f"the check has taken its {options.limit_s:g} s (--limit-s)"
        if reason is not None:
            done.append(Part(step, part, "skipped", error=reason))
        else:
            done.append(run_part(step, part, setting, limit_s, options.output))
            spent_s += done[-1].seconds if step != "bundles" else 0.0
        print(line_of(done[-1]), file=sys.stderr, flush=True)
        write_report(head, done, options.output)
    num_failed = sum(each.status == "failed" for each in done)
    print(f"{num_failed} of {len(done)} parts failed; report: {options.output / 'gpu-check.html'}")
    return int(num_failed > 0)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", type=_device, default="cuda", help="cpu, cuda or cuda:N (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=3.0, help="that one figure is measured (default: %(default)s)")
    parser.add_argument(
        "--limit-s", type=float, default=600.0, help="of the whole check, beside making bundles (default: %(default)s)"
    )
    names = ",".join(STEPS)
    parser.add_argument("--only", type=_steps, default=list(STEPS), help=f"steps, separated by commas, of {names}")
    names = ",".join(MODELS)
    parser.add_argument("--models", type=_models, default=list(MODELS), help=f"of bundles and parity, of {names}")
    parser.add_argument(
        "--size", choices=SIZES, help="of the random Llama that is measured (default: 1b; on the CPU tiny)"
    )
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        help="of that Llama where only one is measured (default: bf16; on the CPU fp32)",
    )
    parser.add_argument(
        "--work", type=Path, default=WORK, help="folder of checkpoints and bundles (default: %(default)s)"
    )
    parser.add_argument("--output", type=Path, default=WORK, help="folder of the report (default: %(default)s)")
    options = parser.parse_args(arguments)
    on_cpu = options.device == "cpu"
    options.size = options.size or ("tiny" if on_cpu else "1b")
    options.precision = options.precision or ("fp32" if on_cpu else "bf16")
    return options


def _device(text: str) -> str:
    if not re.fullmatch(r"cpu|cuda(:\d+)?", text):
        raise argparse.ArgumentTypeError(f"{text!r} is none of cpu, cuda and cuda:N")
    return text


def _steps(text: str) -> list[str]:
    return _chosen(text, "step", STEPS)


def _models(text: str) -> list[str]:
    return _chosen(text, "model", MODELS)


def _chosen(text: str, what: str, offered: Collection[str]) -> list[str]:
    wanted = text.split(",")
    if unknown := [name for name in wanted if name not in offered]:
        raise argparse.ArgumentTypeError(f"no {what} {unknown[0]!r}; there are {', '.join(offered)}")
    return [name for name in offered if name in wanted]


def parts_of(steps: Sequence[str], setting: Setting) -> list[tuple[str, str]]:
    """Step and name of every part, in order."""
    return [(step, part) for step in steps for part in STEPS[step].parts(setting)]


def exported(setting: Setting) -> list[str]:
    """All models that bundles are made of; the measured one is last, as it takes the longest."""
    return list(dict.fromkeys([*setting.models, setting.measured]))


def not_run(part: str, step: str, setting: Setting) -> str | None:
    """Why a part cannot be measured on this device; None: it can."""
    return BF16_NEEDS_CUDA if setting.device == "cpu" and step != "bundles" and part.endswith("bf16") else None


def run_part(step: str, part: str, setting: Setting, limit_s: float, output: Path) -> Part:
    """Run a part in a process of its own; whatever becomes of it, the figures that it had until then are kept.

    Args:
        step: Its step.
        part: Its name.
        setting: What all parts have in common.
        limit_s: After which it is killed, with all that it started.
        output: Folder of the report; what the part writes goes to its folder `logs`.
    """
    logs = output / "logs"
    logs.mkdir(exist_ok=True)
    log, file = logs / f"{step}-{part}.log", logs / f"{step}-{part}.json"
    file.unlink(missing_ok=True)
    command = [sys.executable, str(PROGRAM), step, part, json.dumps(asdict(setting)), str(file)]
    started = time.monotonic()
    code = _run(command, log, limit_s)
    seconds = time.monotonic() - started
    error = None if code == 0 else failure(code, log.read_text(encoding="utf-8", errors="replace"), limit_s)
    figures = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    return Part(step, part, "ok" if error is None else "failed", round(seconds, 2), error, figures)


def _run(command: Sequence[str], log: Path, limit_s: float) -> int | None:
    """Run a command in a group of processes of its own; returns its exit code, None: it took too long."""
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, start_new_session=True)
    try:
        return process.wait(limit_s)
    except subprocess.TimeoutExpired:
        return None
    finally:
        _kill_group(process)


def _kill_group(process: "subprocess.Popen[bytes]") -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def failure(code: int | None, said: str, limit_s: float) -> str:
    """One line about a process that failed: its signal, its limit, or the last line that it wrote."""
    if code is None:
        return f"took more than {limit_s:.0f} s"
    if code < 0:
        return f"ended by {signal.Signals(-code).name}"
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    # Our own errors are sentences that need no name of a class before them.
    return re.sub(r"^plaudit_[\w.]+: ", "", lines[-1]) if lines else f"exit code {code}"


def write_report(head: Mapping[str, Any], parts: Sequence[Part], output: Path) -> None:
    """The JSON and the page, of what there is so far."""
    document = {**head, "parts": [asdict(part) for part in parts]}
    (output / "gpu-check.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    (output / "gpu-check.html").write_text(page(head, parts), encoding="utf-8")


def page(head: Mapping[str, Any], parts: Sequence[Part]) -> str:
    """The report as HTML: a table of the parts of each step, one part downwards; and the tables among their figures."""
    count = {status: sum(part.status == status for part in parts) for status in ("ok", "failed", "skipped")}
    sections = []
    for name, step in STEPS.items():
        own = [part for part in parts if part.step == name]
        if own:
            table = [_row(part) for part in own]
            if len(own) == 1:
                table = [{"figure": name.replace("_", " "), "value": value} for name, value in table[0].items()]
            sections.append(_table(step.title, table))
        for part in own:
            for figure, rows in part.figures.items():
                if isinstance(rows, list):
                    sections.append(_table(f"{step.title}: {part.part}, {figure.replace('_', ' ')}", rows))
    return render_page(
        PAGE,
        subtitle=f"device {head['device']}, {head['size']} model, {head['seconds']:g} s a figure, {head['started']}",
        cards=[(number, status) for status, number in count.items()],
        sections=sections,
    )


def _row(part: Part) -> dict[str, Any]:
    scalars = {name: value for name, value in part.figures.items() if not isinstance(value, list)}
    row = {"part": part.part, "status": part.status, "s": part.seconds, **scalars}
    return row if part.error is None else {**row, "error": part.error}


def _table(title: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    headings = list(dict.fromkeys(name for row in rows for name in row))
    cells = [[_cell(row.get(name, "")) for name in headings] for row in rows]
    return {"title": title, "headings": [name.replace("_", " ") for name in headings], "rows": cells}


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    return f"{value:,}" if type(value) is int else str(value)


def line_of(part: Part) -> str:
    """One line about a part, for the terminal."""
    figures = ", ".join(f"{name} {_cell(value)}" for name, value in part.figures.items() if not isinstance(value, list))
    return f"{part.step} {part.part}: {part.status} after {part.seconds:.0f} s; {part.error or figures}"


if __name__ == "__main__":
    end_on_sigterm()
    sys.exit(main())
