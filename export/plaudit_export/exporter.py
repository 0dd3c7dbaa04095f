"""The export from end to end: load, reference, trace, write aside, check through the serving path, put in place."""

import gc
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from plaudit_export.checkpoint import load_checkpoint
from plaudit_export.errors import ExportError, ParityError
from plaudit_export.graph import OPSET, export_graph
from plaudit_export.reference import Reference, golden_cases
from plaudit_export.report import build_report, describe_parity, score_std, versions
from plaudit_export.rules import Options, derive_rules
from plaudit_export.writer import (
    scoring_hashes,
    staged,
    write_chat_template,
    write_golden,
    write_json,
    write_manifest,
    write_tokenizer,
)
from plaudit_service import parity
from plaudit_service.bundle import GOLDEN, GRAPH, REPORT, Bundle, Manifest, Source, load_bundle, sha256_of
from plaudit_service.errors import ServiceError
from plaudit_service.parity import ParityReport
from plaudit_service.scorer import Scorer

Say = Callable[[str], None]

# Reference scores that lie closer together than this many tolerances would hide a wrong text behind a right one.
_MIN_SPREAD = 1_000


@dataclass(frozen=True)
class Exported:
    """A bundle in its place, and the parity that was measured on it."""

    bundle: Bundle
    parity: ParityReport


def export_checkpoint(
    source: str,
    bundle: Path,
    options: Options | None = None,
    *,
    force: bool = False,
    step: Say = lambda _: None,
    note: Say = lambda _: None,
) -> Exported:
    """Turn a checkpoint into a bundle whose served scores equal the checkpoint's own.

    Args:
        source: a directory, or a hub id.
        bundle: the directory to make.
        options: what the user says about the model.
        force: replace a bundle that is there already.
        step: called with a line before each long step.
        note: called with a line for each guess.

    Raises:
        SourceError: what the user gave cannot be exported.
        ExportError: tracing failed, or a served score is further from its reference than the tolerance.
    """
    with staged(bundle, force=force) as directory:
        notes = _build(source, directory, options or Options(), step, note)
        gc.collect()  # the model goes before the engine loads the weights again
        step("checking the served scores")
        report = _check(directory, notes)
    return Exported(load_bundle(bundle.expanduser()), report)


def _build(source: str, directory: Path, options: Options, step: Say, note: Say) -> list[str]:
    """Write all files but the report; returns the notes."""
    step(f"loading {source}")
    checkpoint = load_checkpoint(source)
    rules = derive_rules(checkpoint, options)
    notes = list(rules.notes)
    longest = min(rules.max_tokens, options.golden_max_tokens)
    cases = golden_cases(checkpoint, rules, options.golden, longest, notes)
    window = getattr(checkpoint.config, "sliding_window", None)
    if window is not None and longest <= window < rules.max_tokens:
        notes.append(f"no golden text is longer than the sliding window of {window} tokens (--golden-max-tokens)")
    for line in notes:
        note(line)
    step(f"scoring {len(cases)} golden texts with transformers")
    reference = Reference(checkpoint, rules)
    bar = tqdm(cases, unit="text", leave=False, disable=None)
    records = [reference.score(item, tokens) for item, tokens in bar]
    write_golden(records, directory)
    if score_std(records) < _MIN_SPREAD * options.tolerance:
        notes.append(f"the golden texts' scores differ by {score_std(records):.1e} only; add texts of yours (--golden)")
        note(notes[-1])
    step(f"tracing {checkpoint.architecture}, which takes longer with every layer")
    checkpoint.merge_adapter()
    export_graph(checkpoint, directory / GRAPH)
    write_tokenizer(checkpoint.tokenizer.backend_tokenizer, directory)
    if rules.chat_template is not None:
        write_chat_template(rules.chat_template, directory)
    manifest = Manifest(
        name=rules.name,
        scoring=rules.scoring(scoring_hashes(directory)),
        tolerance=options.tolerance,
        opset=OPSET,
        source=Source(
            id=checkpoint.id,
            revision=checkpoint.revision,
            architecture=checkpoint.architecture,
            attention=checkpoint.attention,
        ),
        versions=versions(),
        sha256={GOLDEN: sha256_of(directory / GOLDEN)},
    )
    write_manifest(manifest, directory)
    return notes


def _check(directory: Path, notes: list[str]) -> ParityReport:
    """Score the golden texts as the service does, and add the report to the bundle."""
    try:
        scorer = Scorer(directory)
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
    bundle = scorer.bundle
    write_json(build_report(bundle, scorer.model.engine.name, report, notes), directory / REPORT)
    hashes = bundle.manifest.sha256 | {REPORT: sha256_of(directory / REPORT)}
    write_manifest(bundle.manifest.model_copy(update={"sha256": hashes}), directory)
    return report
