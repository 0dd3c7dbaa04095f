"""What the golden texts have shown of each model so far: checked, shown, logged. Knows not when they are asked."""

from dataclasses import dataclass
from typing import Any

from plaudit_service.engine.device import Device
from plaudit_service.errors import InvalidRequest
from plaudit_service.logs import log
from plaudit_service.metrics import Metrics
from plaudit_service.serving.parity import ParityReport
from plaudit_service.serving.pipeline import Pipeline

_MAX_TEXTS_SHOWN = 100  # golden texts in /info: the worst


@dataclass(frozen=True)
class Check:
    """What became of the golden texts of one model.

    Attributes:
        report: Their scores; None: they could not be asked.
        problem: What was wrong; None: nothing.
    """

    report: ParityReport | None
    problem: str | None


class Checks:
    """What is shown of the checks of each model.

    Args:
        metrics: Where they are shown.

    Attributes:
        reports: The latest that was shown, by the model's name.
    """

    def __init__(self, metrics: Metrics) -> None:
        self.reports: dict[str, ParityReport] = {}
        self._metrics = metrics

    async def check(self, pipeline: Pipeline, device: Device | None = None, **logged: Any) -> Check:
        """Check the golden texts of a model.

        Args:
            pipeline: The model's.
            device: What computes them; None: what computes all.
            logged: More for the line of the log.

        Raises:
            Unavailable: nothing could compute them.
        """
        name = pipeline.model.bundle.name
        try:
            report = await pipeline.check_parity(device)
        except InvalidRequest as error:
            return Check(None, f'model "{name}": its golden texts cannot be scored: {error}')
        log("parity", model=name, **logged, **parity_info(report))
        if report.ok:
            return Check(report, None)
        return Check(report, f'model "{name}" does not give its reference scores: {report.describe_worst()}')

    def show(self, name: str, check: Check) -> None:
        """Let a check stand for its model, in metrics and `reports`."""
        self._metrics.parity_ok.labels(name).set(check.problem is None)
        if (report := check.report) is not None:
            self.reports[name] = report
            self._metrics.batch_invariant.labels(name).set(report.batch_invariant)
            self._metrics.parity_max_abs_diff.labels(name).set(report.max_abs_diff)


def parity_info(report: ParityReport) -> dict[str, Any]:
    """What a report says, as JSON."""
    return {
        "ok": report.ok,
        "num_golden_texts": len(report.rows),
        "max_abs_diff": _finite(report.max_abs_diff),
        "batch_invariant": report.batch_invariant,
        "batch_max_abs_diff": _finite(report.batch_max_abs_diff),
        "worst": report.describe_worst(),
    }


def worst_texts(report: ParityReport) -> list[dict[str, Any]]:
    """The golden texts as `GET /info` shows them, worst first, without the texts."""
    return [
        {
            "index": row.index,
            "num_tokens": row.num_tokens,
            "reference": row.reference,
            "served": row.alone,
            "difference": _finite(row.difference),
            "allowed": row.allowed,
            "problem": row.problem,
        }
        for row in report.worst_first[:_MAX_TEXTS_SHOWN]
    ]


def _finite(value: float) -> float | None:
    return value if value < float("inf") else None
