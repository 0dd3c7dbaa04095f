"""What an export measured: the content of `report.json`, and what a person reads of it."""

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from plaudit_export.checks.comparison import Comparison
from plaudit_export.versions import versions
from plaudit_service.bundles.bundle import Bundle, Golden
from plaudit_service.serving.parity import ParityReport


def build_report(
    bundle: Bundle,
    engine: str,
    parity: ParityReport | None,
    comparison: Comparison | None,
    pairs: Mapping[str, Any] | None,
    notes: Sequence[str],
) -> dict[str, Any]:
    """The content of `report.json`.

    Args:
        bundle: of the report.
        engine: that the parity was measured on.
        parity: of the golden texts; None: there is no graph to score them with.
        comparison: with float32, where the precision is reduced.
        pairs: what preference pairs say of the text rule, where any were given.
        notes: of the export.
    """
    return {
        "precision": bundle.scoring.precision,
        "parity": None if parity is None else _parity_content(engine, parity),
        "against_float32": None if comparison is None else dataclasses.asdict(comparison),
        "pairs": None if pairs is None else dict(pairs),
        "golden_score_std": score_std(bundle.golden),
        "checked": describe_checked(bundle),
        "checked_tokens": longest_golden(bundle),
        "unchecked": describe_unchecked(bundle),
        "size_bytes": {path.name: path.stat().st_size for path in sorted(bundle.path.iterdir())},
        "notes": list(notes),
        "versions": versions(),
    }


def _parity_content(engine: str, parity: ParityReport) -> dict[str, Any]:
    rows = [
        {
            "index": row.index,
            "num_tokens": row.num_tokens,
            "reference": row.reference,
            "alone": row.alone,
            "batched": row.batched,
            "shared": row.shared,
        }
        for row in parity.rows
    ]
    return {
        "engine": engine,
        "max_abs_diff": parity.max_abs_diff,
        "batch_max_abs_diff": parity.batch_max_abs_diff,
        "batch_invariant": parity.batch_invariant,
        "rows": rows,
    }


def score_std(golden: Sequence[Golden]) -> float:
    """Standard deviation of the reference scores: parity says little where all texts score alike."""
    return statistics.pstdev(record.score for record in golden)


def longest_golden(bundle: Bundle) -> int:
    """Tokens of the longest text that was checked."""
    return max(len(record.token_ids) for record in bundle.golden)


def describe_checked(bundle: Bundle) -> list[str]:
    """What the figures of a report were measured on."""
    if bundle.scoring.engine != "onnx":
        return ["token ids: the serving code's against those of the reference"]
    if bundle.scoring.precision != "bf16":
        return ["parity: the bundle's graph in ONNX Runtime on the CPU"]
    return [
        "parity: the float32 graph of the same model in ONNX Runtime on the CPU",
        "the bfloat16 graph: every node and its types, by onnx.checker",
        "against_float32: the model in torch on the CPU, each operator in bfloat16",
    ]


def describe_unchecked(bundle: Bundle, *, graph_ran: bool = False) -> str | None:
    """What was not checked: the graph that no CPU runs, texts longer than all golden ones; None: nothing of that.

    Args:
        bundle: a bundle.
        graph_ran: a device has run the graph just now.
    """
    unchecked = []
    if bundle.scoring.engine != "onnx":
        unchecked.append("no score was served yet; plaudit-serve checks the engine's at its start")
    if bundle.scoring.precision == "bf16" and not graph_ran:
        unchecked.append(
            "the bfloat16 graph was not run, because no CPU does; a service with --device cuda checks it at its start"
        )
    checked, limit = longest_golden(bundle), bundle.scoring.max_tokens
    if checked < limit:
        unchecked.append(
            f"texts of more than {checked} tokens were not checked; --golden-max-tokens {limit} checks them"
        )
    return "; ".join(unchecked) or None


def describe_bundle(bundle: Bundle) -> str:
    """What a bundle is, one fact per line."""
    manifest, scoring = bundle.manifest, bundle.scoring
    source = manifest.source
    revision = f" at {source.revision}" if source.revision else ""
    facts = {
        "name": bundle.name,
        "fingerprint": bundle.fingerprint,
        "source": f"{source.id}{revision}",
        "architecture": f"{source.architecture} ({scoring.kind}, reference attention: {source.attention})",
        "precision": f"{scoring.precision}, tolerance {manifest.tolerance:g} x max(1, |score|)",
        "recipe": manifest.recipe or "none",
        "max_tokens": scoring.max_tokens,
        "vocab_size": scoring.vocab_size,
        "pad_token_id": scoring.pad_token_id,
        "bos": _special(scoring.bos),
        "eos": _special(scoring.eos),
        "add_special_tokens": scoring.add_special_tokens,
        "chat_special_tokens": scoring.chat_special_tokens,
        "append_eos": scoring.append_eos,
        "chat_end": scoring.chat_end,
        "pair": scoring.pair,
        "heads": ", ".join(f"{head.name} x {head.weight:g}" for head in scoring.heads),
        **_steps(bundle),
        "normalization": _normalization(bundle),
        "chat template": "yes" if bundle.chat_template else "no",
        "golden texts": (
            f"{len(bundle.golden)} of up to {longest_golden(bundle)} tokens, "
            f"scores' standard deviation {score_std(bundle.golden):.3g}"
        ),
        "engine": scoring.engine if scoring.engine != "onnx" else f"onnx, opset {manifest.opset}",
        "size": f"{_size_bytes(bundle.path) / 1e6:.1f} MB",
        "made with": ", ".join(f"{name} {version}" for name, version in manifest.versions.items()),
    }
    return "\n".join(f"{name:<19} {value}" for name, value in facts.items())


def describe_parity(parity: ParityReport) -> str:
    """One line per golden text, and what they show together."""
    lines = ["  text  tokens     reference        served  |difference|"]
    for row in parity.rows:
        served = "none" if row.alone is None else f"{row.alone:.6f}"
        flag = "" if row.ok else f"  <- {row.problem or f'limit {row.allowed:.1e}'}"
        lines.append(
            f"{row.index:>6}  {row.num_tokens:>6}  {row.reference:>12.6f}  {served:>12}  {row.difference:>12.1e}{flag}"
        )
    lines.append(describe_verdict(parity))
    return "\n".join(lines)


def describe_verdict(parity: ParityReport) -> str:
    """One line: how far the served scores are from the references, and from each other in batches and on prefixes."""
    shared = any(row.shared is not None for row in parity.rows)
    ways = "alone, batched and on a shared prefix" if shared else "alone and batched"
    apart = "the same bits" if parity.batch_invariant else f"{parity.batch_max_abs_diff:.1e} apart"
    return f"{len(parity.rows)} golden texts: largest |served - reference| {parity.max_abs_diff:.1e}; {ways} {apart}"


def _normalization(bundle: Bundle) -> str:
    normalization, source = bundle.scoring.normalization, bundle.manifest.normalization_source
    if normalization is None:
        return "none"
    on = f", measured on {source.num_texts} texts" if source else ""
    return f"(raw - {normalization.mean:g}) / {normalization.std:g}{on}"


def _steps(bundle: Bundle) -> dict[str, str]:
    """What a step is, and which number it gets; nothing of a model that scores texts."""
    steps = bundle.scoring.steps
    if steps is None:
        return {}
    how = "steps and ends encoded one by one" if steps.apart else "texts encoded whole"
    number = {"identity": "the weighted heads", "sigmoid": "a probability"}[bundle.scoring.link]
    return {"steps": f"end with {steps.end!r}, scored at {_special(steps.token)}: {number}; {how}"}


def _special(token: Any) -> str:
    return "none" if token is None else f"{token.text!r} ({token.id})"


def _size_bytes(path: Path) -> int:
    return sum(file.stat().st_size for file in path.iterdir())
