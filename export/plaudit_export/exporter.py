"""The export from end to end: load, reference, trace, write aside, check through the serving path, put in place."""

import ctypes
import gc
import shutil
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from plaudit_export.checkpoints.checkpoint import Checkpoint, load_checkpoint
from plaudit_export.checkpoints.rules import DEFAULT_TOLERANCE, Options, Rules, derive_rules
from plaudit_export.checks.comparison import Comparison, Scores
from plaudit_export.checks.devices import computing_on
from plaudit_export.checks.pair_answer import Answer
from plaudit_export.checks.pair_rules import ask_pairs
from plaudit_export.checks.readings import other_readings
from plaudit_export.checks.reference import Case, Reference, golden_cases, sequences, users_sequences
from plaudit_export.checks.report import score_std
from plaudit_export.checks.text_files import Pair
from plaudit_export.engine_checkpoint import check_loadable, label_notes, weights_hashes
from plaudit_export.errors import ExportError, RuleError, SourceError
from plaudit_export.finish import Draft, Exported, Say, finish
from plaudit_export.graphs.graph_file import put_weights_beside
from plaudit_export.graphs.onnx_source import copy_graph, load_onnx
from plaudit_export.graphs.precision import (
    MIN_AGREEMENT,
    Float32,
    GraphScorer,
    compare,
    graph_float32,
    write_int8,
)
from plaudit_export.graphs.torch_runtime import TorchRuntime
from plaudit_export.graphs.tracing import OPSET, export_graph, lower, needs_mask, release
from plaudit_export.progress import elapsed
from plaudit_export.writer import (
    staged,
    write_chat_template,
    write_golden,
    write_tokenizer,
)
from plaudit_service.bundles.bundle import (
    GRAPH,
    GRAPH_DATA,
    TOKENIZER,
    Golden,
    ScoringFile,
    Source,
    WeightsFile,
    load_bundle,
)
from plaudit_service.engine.calls import graph_bytes
from plaudit_service.engine.onnx_runtime_cuda import TOLERANCES
from plaudit_service.text.tokenization import TokenizedText

# Reference scores that lie closer together than this many tolerances would hide a wrong text behind a right one.
_MIN_SPREAD = 1_000
# Of the files of a graph that is measured before the manifest is made.
_PLACEHOLDER_HASHES: dict[ScoringFile, str] = dict.fromkeys(("model.onnx", "tokenizer.json"), "0" * 64)
# A reduced precision may be this much further from float32 on another kind of CPU than it was here.
_HEADROOM = 1.5


def export_checkpoint(
    source: str,
    bundle: Path,
    options: Options | None = None,
    *,
    pairs: Sequence[Pair] = (),
    force: bool = False,
    step: Say = lambda _: None,
    note: Say = lambda _: None,
) -> Exported:
    """Turn a checkpoint into a bundle whose served scores equal the checkpoint's own.

    Args:
        source: a directory, or a hub id.
        bundle: the directory to make.
        options: what the user says about the model.
        pairs: preference pairs, which are asked whether the text rule is right.
        force: replace a bundle that is there already.
        step: called with a line before each long step.
        note: called with a line for each guess.

    Raises:
        SourceError: what the user gave cannot be exported, or the pairs speak clearly for another rule.
        ExportError: tracing failed, a served score is further from its reference than the tolerance, or a reduced
            precision ranks too many pairs otherwise.
    """
    options = options or Options()
    with (
        staged(bundle, force=force) as directory,
        tempfile.TemporaryDirectory(dir=directory.parent, prefix=f".{directory.name}.") as scratch,
    ):
        float_directory = Path(scratch) if options.precision in {"int8", "bf16"} else directory
        draft = _build(source, directory, float_directory, options, pairs, step, note, Path(scratch))
        run_directory = _runs_in(directory, Path(scratch), options.precision)
        _collect()
        comparison, tolerance = None, options.tolerance or options.default_tolerance
        if options.precision != "fp32":
            comparison, tolerance = _reduce(draft, directory, float_directory, run_directory, options, step)
        if options.precision == "bf16":
            draft.notes.extend(_beyond_the_device(comparison, note))
        _collect()
        report = finish(draft, directory, tolerance, comparison, options, step, run_directory=run_directory)
    return Exported(load_bundle(bundle.expanduser()), report, comparison)


def _collect() -> None:
    """Drop models and graphs, which refer to themselves, and give back what glibc keeps of their memory."""
    gc.collect()
    if sys.platform == "linux":
        with suppress(AttributeError):  # another libc
            ctypes.CDLL(None).malloc_trim(0)


def _runs_in(directory: Path, scratch: Path, precision: str) -> Path:
    """The directory whose graph is run for all checks.

    For bfloat16 it is the one in float32. For float16 a graph of one file is written again into two, because
    ONNX Runtime makes float32 of its weights while it holds that file: together more than half as much again as the
    weights in float32.
    """
    if precision == "bf16":
        return scratch
    if precision != "fp16" or (directory / GRAPH_DATA).exists():
        return directory
    put_weights_beside(directory / GRAPH, scratch / GRAPH)
    shutil.copy(directory / TOKENIZER, scratch)
    return scratch


def _build(
    source: str,
    directory: Path,
    float_directory: Path,
    options: Options,
    pairs: Sequence[Pair],
    step: Say,
    note: Say,
    scratch: Path,
) -> Draft:
    """Write the graph (for int8 and bfloat16 that of float32, too), the tokenizer, the template and the golden texts.

    The model is gone when this returns: the engine loads the weights again.
    """
    step(f"loading {source}")
    checkpoint = load_checkpoint(
        source,
        builtin_class=options.builtin_class,
        pad_token=options.pad_token,
        token_logits=[head.name for head in options.token_logits],
        copies_in=scratch if options.engine == "vllm" else None,
    )
    if options.engine == "vllm":
        check_loadable(checkpoint)
    rules = derive_rules(checkpoint, options)
    notes = list(rules.notes)
    cases = golden_cases(checkpoint, rules, options.golden, min(rules.max_tokens, options.golden_max_tokens), notes)
    notes += other_readings(checkpoint, rules, options, cases)
    notes += _window_notes(checkpoint, rules, options)
    notes += label_notes(source) if options.engine == "vllm" else []
    measured, normalized = (
        None if file is None else users_sequences(checkpoint, rules, option, file.items, notes)
        for option, file in (("--calibrate", options.calibrate), ("--normalize-on", options.normalize_on))
    )
    answer = _ask(checkpoint, rules, pairs, step) if pairs else None
    if answer is not None:
        notes.append(f"--pairs: {answer.verdict()}")
    for line in notes:
        note(line)
    golden = sequences(rules, cases)
    with computing_on(checkpoint.model, options.device):
        # A reduced precision states what it does to scores, and no test holds its values along a text.
        along = rules.trained_at != "end" and options.precision == "fp32"
        records = _references(checkpoint, rules, cases, options.device, step, along=along)
        float_scores = _float_scores(checkpoint, rules, records, measured, options)
        normal_scores = _reference_scores(checkpoint, rules, normalized, options)
    write_golden(records, directory)
    if score_std(records) < _MIN_SPREAD * (options.tolerance or options.default_tolerance):
        notes.append(f"the golden texts' scores differ by {score_std(records):.1e} only; add texts of yours (--golden)")
        note(notes[-1])
    emulated, saved_bytes = None, 0
    if options.engine == "onnx":
        calibrating = _measuring(measured)[1] if measured else golden
        emulated, saved_bytes = _write_graphs(checkpoint, rules, calibrating, directory, float_directory, options, step)
    release(checkpoint.model)
    write_tokenizer(checkpoint.tokenizer.backend_tokenizer, directory)
    if rules.chat_template is not None:
        write_chat_template(rules.chat_template, directory)
    made_from = Source(
        id=checkpoint.id,
        revision=checkpoint.revision,
        format=checkpoint.format_name,
        architecture=checkpoint.architecture,
        attention=checkpoint.attention,
    )
    asked = None if answer is None else answer.as_json()
    return Draft(
        rules,
        made_from,
        OPSET if options.engine == "onnx" else None,
        notes,
        records,
        golden,
        measured,
        normalized,
        float_scores,
        saved_bytes,
        emulated,
        asked,
        None if options.engine == "onnx" else _hashes(source, step),
        normal_scores,
    )


def _hashes(source: str, step: Say) -> dict[WeightsFile, str]:
    step(f"hashing the weights of {source}")
    return weights_hashes(source)


def _write_graphs(
    checkpoint: Checkpoint,
    rules: Rules,
    texts: Sequence[TokenizedText],
    directory: Path,
    float_directory: Path,
    options: Options,
    step: Say,
) -> tuple[Scores | None, int]:
    """Trace the model, for bfloat16 in float32, too; torch's scores of `texts` in it, and the bytes that it saves."""
    step(f"tracing {checkpoint.architecture}, which takes longer with every layer")
    checkpoint.merge_adapter()
    has_mask = needs_mask(checkpoint, rules.max_tokens)
    float_bytes = _weights_bytes(checkpoint)
    if options.precision == "fp16":
        lower(checkpoint.model, torch.float16)
    with elapsed("tracing"):
        export_graph(checkpoint, float_directory / GRAPH, has_mask=has_mask, to_run_only=options.precision == "bf16")
    emulated = None
    if options.precision == "bf16":
        step(f"tracing {checkpoint.architecture} in bf16")
        lower(checkpoint.model, torch.bfloat16)
        with elapsed("tracing"):
            export_graph(checkpoint, directory / GRAPH, has_mask=has_mask, check=True)
        emulated = _emulate(checkpoint, rules, texts, step)
        write_tokenizer(checkpoint.tokenizer.backend_tokenizer, float_directory)
    return emulated, float_bytes - _weights_bytes(checkpoint)


def _ask(checkpoint: Checkpoint, rules: Rules, pairs: Sequence[Pair], step: Say) -> Answer:
    step("asking preference pairs by which rule the checkpoint was trained")
    answer = ask_pairs(checkpoint, rules, pairs)
    if objection := answer.objection():
        raise RuleError(f"{checkpoint.id}: {objection}; no bundle was written", answer.describe())
    return answer


def _float_scores(
    checkpoint: Checkpoint,
    rules: Rules,
    records: Sequence[Golden],
    measured: Sequence[TokenizedText] | None,
    options: Options,
) -> Scores | None:
    """What float32 gives the texts that measure float16 and bfloat16; None for the others."""
    if options.precision not in {"fp16", "bf16"}:
        return None
    if measured is None:
        return np.array([record.score for record in records])
    reference = Reference(checkpoint, rules, options.device)
    bar = tqdm(_measuring(measured)[1], desc="--calibrate", unit="text", leave=False, disable=None)
    return np.array([reference.weigh(_heads(reference, text)) for text in bar])


def _reference_scores(
    checkpoint: Checkpoint, rules: Rules, normalized: Sequence[TokenizedText] | None, options: Options
) -> Scores | None:
    """What float32 gives the texts to normalize on, where no graph will; None for the others."""
    if options.engine == "onnx" or normalized is None:
        return None
    reference = Reference(checkpoint, rules, options.device)
    bar = tqdm(normalized, desc="--normalize-on", unit="text", leave=False, disable=None)
    return np.array([reference.weigh(_heads(reference, text)) for text in bar])


def _heads(reference: Reference, text: TokenizedText) -> list[float]:
    return reference.heads(text.token_ids.tolist(), None if text.type_ids is None else text.type_ids.tolist())


def _measuring(texts: Sequence[TokenizedText]) -> tuple[Sequence[TokenizedText], Sequence[TokenizedText], bool]:
    """Of the user's texts those that calibrate and those that measure, the last third, and whether these are others."""
    split = len(texts) - len(texts) // 3
    return texts[:split], texts[split:] or texts, split < len(texts)


def _weights_bytes(checkpoint: Checkpoint) -> int:
    return sum(parameter.nbytes for parameter in checkpoint.model.parameters())


def _emulate(checkpoint: Checkpoint, rules: Rules, texts: Sequence[TokenizedText], step: Say) -> Scores:
    """Scores (N,) of a lowered model by torch: ONNX Runtime computes in bfloat16 on no CPU."""
    step(f"scoring {len(texts)} texts with torch in bfloat16")
    scoring = rules.scoring(_PLACEHOLDER_HASHES, "bf16")
    return GraphScorer(Path(), scoring, TorchRuntime(checkpoint)).scores(texts, "bfloat16")


def export_onnx(
    source: Path,
    bundle: Path,
    options: Options | None = None,
    *,
    checkpoint: str | None = None,
    force: bool = False,
    step: Say = lambda _: None,
    note: Say = lambda _: None,
) -> Exported:
    """Turn a directory with somebody else's graph into a bundle of kind `plain`.

    Args:
        source: made by `optimum-cli export onnx --task text-classification`.
        bundle: the directory to make.
        options: what the user says about the model.
        checkpoint: the checkpoint that the graph came from, whose scores are the reference; None: the references are
            the graph's own, so that parity shows only that serving does not change them.
        force: replace a bundle that is there already.
        step: called with a line before each long step.
        note: called with a line for each guess.

    Raises:
        SourceError: what the user gave cannot be exported.
        ExportError: a served score is further from its reference than the tolerance.
    """
    options = options or Options()
    with staged(bundle, force=force) as directory:
        step(f"reading {source}")
        foreign = load_onnx(source)
        original = None if checkpoint is None else load_checkpoint(checkpoint, builtin_class=options.builtin_class)
        named = None if original is None else original.named_recipe
        rules = derive_rules(replace(foreign.checkpoint, trained_by=named or foreign.checkpoint.trained_by), options)
        notes = [*rules.notes, *(original.notes if original else ())]
        longest = min(rules.max_tokens, options.golden_max_tokens)
        cases = golden_cases(original or foreign.checkpoint, rules, options.golden, longest, notes)
        notes += other_readings(original or foreign.checkpoint, rules, options, cases)
        copy_graph(foreign, directory / GRAPH)
        write_tokenizer(foreign.checkpoint.tokenizer.backend_tokenizer, directory)
        if rules.chat_template is not None:
            write_chat_template(rules.chat_template, directory)
        if original is None:
            notes.append(
                "no --checkpoint: the references are the graph's own scores, so nothing shows that the graph is "
                "right; give the checkpoint with --checkpoint"
            )
        for line in notes:
            note(line)
        if original is None:
            step(f"scoring {len(cases)} golden texts with the graph, one at a time")
            records = _graph_references(directory, rules, cases)
        else:
            with computing_on(original.model, options.device):
                records = _references(original, rules, cases, options.device, step)
            release(original.model)
        write_golden(records, directory)
        attention = "unknown (a foreign graph)" if original is None else original.attention
        made_from = Source(
            id=foreign.checkpoint.id,
            revision=None if original is None else original.revision,
            architecture=foreign.checkpoint.architecture,
            attention=attention,
        )
        original = None
        _collect()
        draft = Draft(rules, made_from, foreign.opset, notes, records, sequences(rules, cases), None, None)
        tolerance = options.tolerance or DEFAULT_TOLERANCE
        report = finish(draft, directory, tolerance, None, options, step, run_directory=directory)
    return Exported(load_bundle(bundle.expanduser()), report)


def _graph_references(directory: Path, rules: Rules, cases: Sequence[Case]) -> list[Golden]:
    scorer = GraphScorer(directory, rules.scoring(_PLACEHOLDER_HASHES))
    heads = [scorer.heads([text], "golden texts")[0] for text in sequences(rules, cases)]
    return [
        Golden(item, tuple(tokens.token_ids), tuple(values.tolist()), float(scorer.weigh(values[None])[0]))
        for (item, tokens), values in zip(cases, heads, strict=True)
    ]


def _window_notes(checkpoint: Checkpoint, rules: Rules, options: Options) -> list[str]:
    window = getattr(checkpoint.config, "sliding_window", None)
    if window is None or not options.golden_max_tokens <= window < rules.max_tokens:
        return []
    return [f"no built-in golden text is longer than the sliding window of {window} tokens (--golden-max-tokens)"]


def _references(
    checkpoint: Checkpoint, rules: Rules, cases: Sequence[Case], device: str, step: Say, *, along: bool = False
) -> list[Golden]:
    step(f"scoring {len(cases)} golden texts with transformers")
    reference = Reference(checkpoint, rules, device)
    bar = tqdm(cases, unit="text", leave=False, disable=None)
    records = [reference.score(item, tokens, along=along) for item, tokens in bar]
    if lost := sum(
        not np.isfinite([record.score, *chain.from_iterable(record.along or ())]).all() for record in records
    ):
        raise SourceError(
            f"{checkpoint.id}: {lost} of {len(records)} golden texts get a score from transformers that is not "
            "finite (NaN or infinite); check that the weights are complete"
        )
    return records


def _reduce(
    draft: Draft, directory: Path, float_directory: Path, run_directory: Path, options: Options, step: Say
) -> tuple[Comparison, float]:
    """Make the graph of the reduced precision where it is not there yet, and measure it.

    The last third of the user's texts measures, the rest calibrates; without such texts the golden ones do both.

    Raises:
        ExportError: too many pairs are ranked otherwise than by float32.
    """
    scoring = draft.rules.scoring(_PLACEHOLDER_HASHES, options.precision)
    calibrating, texts, held_out = _measuring(draft.measured) if draft.measured else (draft.golden, draft.golden, False)
    kept = "the head"
    if options.precision == "int8":
        scratch = float_directory / "int8"
        scratch.mkdir()
        kept = write_int8(float_directory, directory, scoring, calibrating, scratch, step).describe()
    if draft.float_scores is None:
        float32 = graph_float32(float_directory, scoring, texts)
    else:
        float32 = Float32(draft.float_scores, graph_bytes(directory) + draft.saved_bytes)
    step("comparing with float32")
    comparison = compare(
        float32,
        run_directory,
        scoring,
        texts,
        size_bytes=graph_bytes(directory),
        held_out=held_out,
        left_in_float=kept,
        emulated=draft.emulated,
    )
    if comparison.pair_agreement < MIN_AGREEMENT and not options.allow_loss:
        raise ExportError(
            f"{options.precision} ranks {comparison.pair_agreement:.2%} of {comparison.num_texts} texts' pairs as "
            f"float32 does, at least {MIN_AGREEMENT:.0%} are needed; calibrate on more texts like those to score "
            "(--calibrate FILE), export another precision, or accept it with --allow-loss; no bundle was written"
        )
    if options.precision == "bf16":  # its parity is that of the float32 graph
        return comparison, options.tolerance or DEFAULT_TOLERANCE
    return comparison, options.tolerance or _measured_tolerance(GraphScorer(run_directory, scoring), draft)


def _beyond_the_device(comparison: Comparison | None, note: Say) -> list[str]:
    """A note where a device that rounds as torch does would refuse the bundle at its start."""
    assert comparison is not None
    moved = comparison.max_abs_diff / comparison.score_std
    if moved <= TOLERANCES["bf16"]:
        return []
    line = (
        f"bfloat16 moves a score by {moved:.2f} standard deviations of the scores in torch, and a service on a CUDA "
        f"device starts with at most {TOLERANCES['bf16']} on the golden texts; export it in fp16 or fp32"
    )
    note(line)
    return [line]


def _measured_tolerance(scorer: GraphScorer, draft: Draft) -> float:
    """The largest distance of a golden text from its float32 reference, with headroom, in two digits."""
    heads = scorer.heads(draft.golden, "golden texts")
    served = np.column_stack([heads, scorer.weigh(heads)])
    reference = np.array([[*record.heads, record.score] for record in draft.records])
    largest = float((np.abs(served - reference) / np.maximum(1, np.abs(reference))).max())
    return max(DEFAULT_TOLERANCE, float(f"{_HEADROOM * largest:.1e}"))
