"""A plan as lines for a reader, and as JSON for a program."""

from collections.abc import Sequence
from typing import Any

from plaudit_ppo.config import PPOConfig, shown
from plaudit_ppo.planning.plan import PARTS, Plan
from plaudit_ppo.planning.remedies import Remedy

_GB = 1e9


def plan_line(plan: Plan) -> str:
    """One line: what a process takes at its peak, and the largest parts of it."""
    parts = {part: size for part, size in plan.phases[plan.peak_phase].items() if size >= 0.005 * plan.peak}
    largest = ", ".join(f"{part} {_gb(size)}" for part, size in sorted(parts.items(), key=lambda each: -each[1]))
    return f"plan: {_gb(plan.peak)} GB in each process at its peak, in {plan.peak_phase} ({largest})"


def plan_text(config: PPOConfig, plan: Plan, found: Sequence[Remedy]) -> str:
    """The parts of every phase, what each setting would save, and what is assumed."""
    used = [part for part in PARTS if any(parts[part] for parts in plan.phases.values())]
    width = max(map(len, [*used, "together"]))
    rows = [(part, [parts[part] for parts in plan.phases.values()]) for part in used]
    rows.append(("together", [sum(parts.values()) for parts in plan.phases.values()]))
    lines = [
        plan_line(plan),
        "",
        f"{'GB':{width}}" + "".join(f"{phase:>11}" for phase in plan.phases),
        *(f"{name:{width}}" + "".join(f"{_gb(size):>11}" for size in sizes) for name, sizes in rows),
        "",
    ]
    if found:
        lines.append("what each setting alone would save:")
        for remedy in found:
            saved = plan.peak - remedy.plan.peak
            lines.append(f"  {setting_text(remedy):34} -{_gb(saved)} GB, then {_gb(remedy.plan.peak)}")
        lines.append("")
    return "\n".join([*lines, "assumed:", *(f"- {each}" for each in assumptions(config, plan))])


def setting_text(remedy: Remedy) -> str:
    """Settings as they are written in a file, in one line."""
    return ", ".join(f"{name} = {shown(value)}" for name, value in remedy.settings.items())


def verdict(plan: Plan, limit: int, fitting: Remedy | None) -> str:
    """Whether a process fits into so many bytes, and by which settings it would."""
    if plan.peak <= limit:
        said = "fits"
    elif fitting:
        said = f"does not fit; with {setting_text(fitting)} it does: {_gb(fitting.plan.peak)} GB"
    else:
        said = "does not fit with any of the settings above; use a smaller policy or more processes"
    return f"{limit / _GB:g} GB: {said}"


def plan_json(config: PPOConfig, plan: Plan, found: Sequence[Remedy]) -> dict[str, Any]:
    """The same for a program; bytes."""
    return {
        "peak_bytes": plan.peak,
        "peak_phase": plan.peak_phase,
        "processes": plan.processes,
        "device": plan.device,
        "phases": {phase: dict(parts) for phase, parts in plan.phases.items()},
        "remedies": [
            {"settings": dict(each.settings), "peak_bytes": each.plan.peak, "saved_bytes": plan.peak - each.plan.peak}
            for each in found
        ],
        "assumptions": assumptions(config, plan),
    }


def assumptions(config: PPOConfig, plan: Plan) -> list[str]:
    """What the figures hold for."""
    assumed = [
        f"every prompt has max_prompt_tokens = {config.max_prompt_tokens}, every completion max_completion_tokens = "
        f"{config.max_completion_tokens} tokens",
        "Python and its libraries are not counted (0.5 to 1 GB of host memory), nor what an allocator keeps unused",
        "attention by PyTorch's fused kernel, as it chooses on the CPU",
    ]
    if plan.device == "cuda":
        kept = ", and so does the former policy" if config.max_staleness else ""
        assumed.append(
            f"written checkpoints take host memory{kept}; CUDA's context (0.5 GB) and libraries are not counted"
        )
    if plan.processes > 1:
        assumed.append(
            "several processes: counted, not measured; to load, each process has the whole networks once, on its host"
        )
    if config.sampler == "vllm":
        assumed.append("engines sample elsewhere; their memory is not counted")
    return assumed


def _gb(size: int) -> str:
    return f"{size / _GB:.2f}"
