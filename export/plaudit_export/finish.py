"""The end of every export: manifest, check through the serving path, report. Knows nothing of checkpoints."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plaudit_export.checkpoints.rules import Options, Rules
from plaudit_export.checks import normalization
from plaudit_export.checks.comparison import Comparison, Scores
from plaudit_export.checks.report import build_report, describe_parity
from plaudit_export.errors import ExportError, ParityError
from plaudit_export.graphs.precision import GraphScorer
from plaudit_export.progress import elapsed
from plaudit_export.versions import versions
from plaudit_export.writer import scoring_hashes, write_json, write_manifest
from plaudit_service.bundles.bundle import (
    GOLDEN,
    REPORT,
    Bundle,
    Golden,
    Manifest,
    NormalizationSource,
    Scoring,
    Source,
    WeightsFile,
    load_bundle,
    sha256_of,
)
from plaudit_service.errors import ServiceError
from plaudit_service.serving import parity
from plaudit_service.serving.parity import ParityReport
from plaudit_service.serving.scorer import Scorer
from plaudit_service.text.tokenization import Tokenization, TokenizedText

Say = Callable[[str], None]


@dataclass(frozen=True)
class Exported:
    """A bundle in its place, the parity that was measured on it, and what a reduced precision costs.

    There is no parity of a bundle without a graph: the engine has loaded nothing yet.
    """

    bundle: Bundle
    parity: ParityReport | None
    comparison: Comparison | None = None


@dataclass(frozen=True)
class Draft:
    """What is left of a checkpoint when its model is gone: all that the manifest and the report need.

    `golden`, `measured` and `normalized` are sequences to score: the golden texts', the user's to calibrate and measure
    on, and the user's to normalize on. `float_scores` are what the model gave in float32 to the texts that measure, and
    `saved_bytes` how much smaller its weights are now: of a reduced precision that no float32 graph was written for.
    `emulated` are torch's scores of the texts that measure, in a precision that ONNX Runtime runs on no CPU. `pairs` is
    what preference pairs say of the text rule. Of a bundle without a graph, `weights` are the hashes of what its engine
    loads, and `normal_scores` what the model gave to the texts to normalize on.
    """

    rules: Rules
    source: Source
    opset: int | None
    notes: list[str]
    records: list[Golden]
    golden: list[TokenizedText]
    measured: list[TokenizedText] | None
    normalized: list[TokenizedText] | None
    float_scores: Scores | None = None
    saved_bytes: int = 0
    emulated: Scores | None = None
    pairs: dict[str, Any] | None = None
    weights: dict[WeightsFile, str] | None = None
    normal_scores: Scores | None = None


def finish(
    draft: Draft,
    directory: Path,
    tolerance: float,
    comparison: Comparison | None,
    options: Options,
    step: Say,
    *,
    run_directory: Path,
) -> ParityReport | None:
    """Normalize, write the manifest, check every served score, and write the report.

    Args:
        draft: what the manifest and the report say.
        directory: holds all other files of the bundle.
        tolerance: for the manifest.
        comparison: of a reduced precision with float32.
        options: what the user says about the model.
        step: called with a line before each long step.
        run_directory: holds the graph to run and the tokenizer: `directory`; where no CPU runs the bundle's own graph,
            that of the float32 twin; or one with the same graph in other files.

    Returns:
        What the golden texts showed; None where there is no graph, so that their token ids alone were checked.

    Raises:
        SourceError: the texts to normalize on all score alike.
        ExportError: a served score is further from its reference than the tolerance.
    """
    write_manifest(_manifest(draft, directory, run_directory, tolerance, options, step), directory)
    if draft.weights is not None:
        _check_tokens(directory, draft)
        return None
    step("checking the served scores")
    return _check(directory, run_directory, draft, comparison)


def _manifest(
    draft: Draft, directory: Path, run_directory: Path, tolerance: float, options: Options, step: Say
) -> Manifest:
    scoring = draft.rules.scoring(scoring_hashes(directory), options.precision, draft.weights)
    normalized_on = None
    if options.normalize_on is not None and draft.normalized is not None:
        step(f"normalizing on {len(draft.normalized)} texts")
        scores = draft.normal_scores
        if scores is None:
            scores = GraphScorer(run_directory, _runnable(scoring)).scores(draft.normalized, "reference texts")
        fitted = normalization.fit(scores, scale=options.normalize_std)
        scoring = scoring.model_copy(update={"normalization": fitted})
        normalized_on = NormalizationSource(num_texts=len(scores), sha256=options.normalize_on.sha256)
    return Manifest(
        name=draft.rules.name,
        scoring=scoring,
        recipe=draft.rules.recipe,
        trained_at=draft.rules.trained_at,
        tolerance=tolerance,
        opset=draft.opset,
        source=draft.source,
        versions=versions(),
        normalization_source=normalized_on,
        sha256={GOLDEN: sha256_of(directory / GOLDEN)},
    )


def _runnable(scoring: Scoring) -> Scoring:
    """In float32 what no CPU runs."""
    return scoring.model_copy(update={"precision": "fp32"}) if scoring.precision == "bf16" else scoring


def _twin(bundle: Bundle, run_directory: Path) -> Bundle:
    """The bundle with the graph that is run instead of its own."""
    manifest = bundle.manifest.model_copy(update={"scoring": _runnable(bundle.scoring)})
    return Bundle(run_directory, manifest, bundle.chat_template, bundle.golden)


def _check(directory: Path, run_directory: Path, draft: Draft, comparison: Comparison | None) -> ParityReport:
    """Score the golden texts as the service does, and add the report to the bundle."""
    try:
        with elapsed("checking"):
            bundle = load_bundle(directory)
            scorer = Scorer(_twin(bundle, run_directory))
            report = parity.check(scorer)
    except ServiceError as error:
        raise ExportError(f"the serving path refuses the new bundle: {error}") from error
    if not report.ok:
        failed = sum(not row.ok for row in report.rows)
        raise ParityError(
            f"{failed} of {len(report.rows)} served scores are not the checkpoint's own; {report.describe_worst()}; "
            "no bundle was written",
            describe_parity(report),
        )
    _add_report(bundle, build_report(bundle, scorer.model.engine.name, report, comparison, draft.pairs, draft.notes))
    return report


def _check_tokens(directory: Path, draft: Draft) -> None:
    """Tokenize the golden texts as the service does, and add the report to the bundle."""
    try:
        bundle = load_bundle(directory)
        texts = Tokenization(bundle).tokenize(parity.golden_items(bundle))
    except ServiceError as error:
        raise ExportError(f"the serving path refuses the new bundle: {error}") from error
    for index, (golden, text) in enumerate(zip(bundle.golden, texts, strict=True)):
        if problem := parity.token_problem(bundle, golden, text):
            raise ExportError(f"golden text {index}: {problem}; no bundle was written")
    _add_report(bundle, build_report(bundle, bundle.scoring.engine, None, None, draft.pairs, draft.notes))


def _add_report(bundle: Bundle, content: dict[str, Any]) -> None:
    write_json(content, bundle.path / REPORT)
    hashes = bundle.manifest.sha256 | {REPORT: sha256_of(bundle.path / REPORT)}
    write_manifest(bundle.manifest.model_copy(update={"sha256": hashes}), bundle.path)
