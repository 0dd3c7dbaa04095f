"""What a benchmark tells: medians and percentiles, rows of figures, one table, one plot. Measures nothing."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Row:
    """One figure.

    Attributes:
        part: What was measured, on which model: "encoder: one request".
        server: Who answered: "service onnxruntime".
        value: Median over the rounds, in `unit`.
        ratios: Median of the ratios inside a round to another server of the same part, by its name.
        more: Figures that explain this one, for the JSON line.
    """

    part: str
    server: str
    value: float
    unit: str
    ratios: Mapping[str, float] = field(default_factory=dict)
    more: Mapping[str, float] = field(default_factory=dict)


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of all values do not exceed (nearest rank)."""
    if not values:
        raise ValueError("no values")
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def median_ratio(values: Sequence[float], others: Sequence[float]) -> float:
    """The median over rounds of what one way reached over what another reached in the same round."""
    return statistics.median(value / other for value, other in zip(values, others, strict=True))


def rate_rows(
    part: str,
    rates: Mapping[str, Sequence[float]],
    *,
    compared_with: Sequence[str],
    more: Mapping[str, Mapping[str, float]],
) -> list[Row]:
    """A row of sequences per second for each server.

    Args:
        part: What was measured.
        rates: Of each server, in each round.
        compared_with: Servers whose rates are divisors; left out where they were not measured.
        more: Of each server.
    """
    return [
        Row(
            part,
            server,
            statistics.median(values),
            "sequences/s",
            {other: median_ratio(values, rates[other]) for other in compared_with if other in rates},
            more.get(server, {}),
        )
        for server, values in rates.items()
    ]


def table(rows: Sequence[Row]) -> str:
    """All rows, aligned; a column for each divisor."""
    divisors = list(dict.fromkeys(name for row in rows for name in row.ratios))
    lines = [["part", "server", "value", "unit", *(f"÷ {name}" for name in divisors)]]
    for row in rows:
        ratios = [f"{row.ratios[name]:.3f}" if name in row.ratios else "" for name in divisors]
        lines.append([row.part, row.server, f"{row.value:.4g}", row.unit, *ratios])
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    numeric = {2, *range(4, 4 + len(divisors))}
    return "\n".join(
        "  ".join(
            cell.rjust(width) if at in numeric else cell.ljust(width)
            for at, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def as_json(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The rows for the JSON line, figures to five digits."""

    def short(value: Any) -> Any:
        if isinstance(value, float):
            return float(f"{value:.5g}")
        return {name: short(each) for name, each in value.items()} if isinstance(value, Mapping) else value

    return [short(asdict(row)) for row in rows]


def draw(rows: Sequence[Row], path: Path, title: str) -> None:
    """One picture: a panel of bars for each unit's parts; written as PNG."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    parts = list(dict.fromkeys(row.part for row in rows))
    servers = list(dict.fromkeys(row.server for row in rows))
    columns = min(3, len(parts))
    lines = math.ceil(len(parts) / columns)
    figure, panels = plt.subplots(lines, columns, figsize=(5 * columns, 2.4 * lines), squeeze=False)
    for panel in panels.flat[len(parts) :]:
        panel.axis("off")
    for part, panel in zip(parts, panels.flat, strict=False):
        shown = [row for row in rows if row.part == part]
        colors = [f"C{servers.index(row.server) % 10}" for row in shown]
        bars = panel.barh([row.server for row in shown], [row.value for row in shown], color=colors)
        panel.bar_label(bars, [f"{row.value:.3g}" for row in shown], padding=3, fontsize=8)
        panel.margins(x=0.18)
        panel.invert_yaxis()
        panel.tick_params(labelsize=8)
        panel.set_title(f"{part}, {shown[0].unit}", fontsize=9)
        panel.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title, fontsize=10)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)
