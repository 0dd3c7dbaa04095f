"""`plaudit-export`: turn a reward-model checkpoint into a verified bundle, and look at bundles."""

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plaudit_export.errors import ExportError, ParityError, RuleError, SourceError
from plaudit_export.recipes.named_tokens import BY_ID
from plaudit_service.command_line import Parser, interruptible, run, say, tell

if TYPE_CHECKING:
    from plaudit_export.checkpoints.rules import Options, TextFile
    from plaudit_export.checks.text_files import Pair
    from plaudit_export.finish import Exported
    from plaudit_service.bundles.bundle import Bundle

PROG = "plaudit-export"

_MAX_DIGITS = 18  # Python refuses to read numbers of thousands


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns:
        0: done. 2: what the user gave is wrong. 1: it was right but failed. 130: interrupted by SIGINT or SIGTERM.
    """
    return run(PROG, lambda: _run(arguments), extra="export")


def _run(arguments: Sequence[str] | None) -> int:
    parsed = _parser().parse_args(arguments)
    try:
        exit_code: int = parsed.run(parsed)
    except (ParityError, RuleError) as error:
        tell(error.table)
        raise
    return exit_code


def _checkpoint(parsed: argparse.Namespace) -> int:
    _require_docstrings()
    from plaudit_export.exporter import export_checkpoint

    options = _checkpoint_options(parsed)
    arguments = {"pairs": _pairs(parsed), "force": parsed.force}
    with interruptible():
        exported = export_checkpoint(parsed.source, parsed.bundle, options, **arguments, step=_step, note=_note)
    return _tell(exported)


def _checkpoint_options(parsed: argparse.Namespace) -> "Options":
    from plaudit_export.checkpoints.rules import Options

    if parsed.precision == "fp32" and (parsed.calibrate or parsed.allow_loss):
        raise SourceError(
            "--calibrate and --allow-loss are for a reduced precision; give --precision int8, fp16 or bf16"
        )
    if parsed.engine == "vllm":
        _refuse_for_engine(parsed)
    of_texts = parsed.normalize in {"mean-std", "mean"}
    if parsed.normalize is not None and of_texts != (parsed.normalize_on is not None):
        raise SourceError("--normalize: mean-std and mean need --normalize-on FILE; saved and none do not take it")
    return Options(
        **_scoring_options(parsed),
        **_bundle_options(parsed),
        precision=parsed.precision,
        engine=parsed.engine,
        calibrate=_text_file("--calibrate", parsed.calibrate),
        allow_loss=parsed.allow_loss,
        normalize_on=_text_file("--normalize-on", parsed.normalize_on),
        normalize_std=parsed.normalize != "mean",
        normalize_saved={"saved": True, "none": False}.get(parsed.normalize),
    )


def _refuse_for_engine(parsed: argparse.Namespace) -> None:
    if parsed.precision != "fp32":
        raise SourceError(
            f"--engine vllm --precision {parsed.precision}: the engine's own --dtype says in which precision it "
            "computes; leave --precision out"
        )
    for option in ("pair", "token_logits"):
        if getattr(parsed, option):
            raise SourceError(
                f"--engine vllm --{option.replace('_', '-')}: vLLM gets the token ids of one text and answers with "
                "the checkpoint's own head, so this option cannot be used; leave it out, or export without --engine"
            )


def _cache(parsed: argparse.Namespace) -> int:
    from plaudit_export.export_cache import cached_bundle

    def export(source: str, bundle: Path) -> None:
        _require_docstrings()
        from plaudit_export.exporter import export_checkpoint

        options = _checkpoint_options(parsed)
        pairs = _pairs(parsed)
        with interruptible():
            exported = export_checkpoint(source, bundle, options, pairs=pairs, step=_step, note=_note)
        if exported.comparison is not None:
            say(exported.comparison.describe())
        _warn_of_unchecked(exported.bundle)
        _note("plaudit-serve takes the options that notes name as --export-options NAME=VALUE, without their --")

    options = {name: value for name, value in vars(parsed).items() if name not in {"run", "source", "cache"}}
    print(cached_bundle(parsed.source, options, export, cache=parsed.cache, say=_step))
    return 0


def _rules(parsed: argparse.Namespace) -> int:
    _require_docstrings()
    from plaudit_export.checkpoints.checkpoint import load_checkpoint
    from plaudit_export.checkpoints.rules import Options, derive_rules
    from plaudit_export.checks.pair_rules import ask_pairs

    if parsed.pairs is None:
        raise SourceError("rules: preference pairs are missing; give them with --pairs FILE")
    pairs, options = _pairs(parsed), Options(**_scoring_options(parsed))
    _step(f"loading {parsed.source}")
    checkpoint = load_checkpoint(
        parsed.source,
        builtin_class=options.builtin_class,
        pad_token=options.pad_token,
        token_logits=[head.name for head in options.token_logits],
    )
    answer = ask_pairs(checkpoint, derive_rules(checkpoint, options), pairs)
    print(json.dumps(answer.as_json(), indent=2) if parsed.json else answer.describe())
    return 0


def _pairs(parsed: argparse.Namespace) -> "Sequence[Pair]":
    from plaudit_export.checks.text_files import read_pairs

    return read_pairs("--pairs", parsed.pairs) if parsed.pairs else ()


def _onnx(parsed: argparse.Namespace) -> int:
    _require_docstrings()
    from plaudit_export.checkpoints.rules import Options
    from plaudit_export.exporter import export_onnx

    options = Options(**_rule_options(parsed), **_bundle_options(parsed))
    arguments = {"checkpoint": parsed.checkpoint, "force": parsed.force}
    with interruptible():
        exported = export_onnx(parsed.source, parsed.bundle, options, **arguments, step=_step, note=_note)
    return _tell(exported)


def _require_docstrings() -> None:
    if sys.flags.optimize > 1:
        raise SourceError("transformers reads docstrings, which python -OO removes; run without -OO (PYTHONOPTIMIZE=2)")


def _step(line: str) -> None:
    say(f"{PROG}: {line} ...")


def _note(line: str) -> None:
    say(f"{PROG}: note: {line}")


def _scoring_options(parsed: argparse.Namespace) -> dict[str, Any]:
    """The fields of `Options` that say how a checkpoint scores a text."""
    from plaudit_service.bundles.bundle import Head

    return {
        **_rule_options(parsed),
        "pad_token": parsed.pad_token,
        "token_logits": tuple(Head(name=name, weight=weight) for name, weight in parsed.token_logits or ()),
        "step_token": parsed.step_token,
        "step_end": parsed.step_end,
        "link": parsed.link,
    }


def _rule_options(parsed: argparse.Namespace) -> dict[str, Any]:
    """Those of them that a graph has, too."""
    from plaudit_service.bundles.bundle import Head

    return {
        "recipe": parsed.recipe,
        "append_eos": parsed.append_eos,
        "strip_newlines": parsed.strip_newlines,
        "space_before_eos": parsed.space_before_eos,
        "add_special_tokens": parsed.add_special_tokens,
        "chat_special_tokens": parsed.chat_special_tokens,
        "pair": parsed.pair,
        "max_tokens": parsed.max_tokens,
        "heads": [Head(name=name, weight=weight) for name, weight in parsed.heads] if parsed.heads else None,
        "chat_template": _read_text(parsed.chat_template) if parsed.chat_template else None,
        "builtin_class": parsed.builtin_class,
    }


def _bundle_options(parsed: argparse.Namespace) -> dict[str, Any]:
    """The fields that say what the bundle is called, and what its served scores are held against."""
    from plaudit_export.checkpoints.rules import DEFAULT_GOLDEN_MAX_TOKENS
    from plaudit_export.checks.devices import check_device
    from plaudit_export.checks.text_files import read_items

    check_device(parsed.device)
    return {
        "name": parsed.name,
        "golden": read_items("--golden", parsed.golden) if parsed.golden else (),
        "golden_max_tokens": parsed.golden_max_tokens or DEFAULT_GOLDEN_MAX_TOKENS,
        "tolerance": parsed.tolerance,
        "device": parsed.device,
    }


def _tell(exported: "Exported") -> int:
    from plaudit_export.checks.report import describe_parity

    if exported.parity is not None:
        tell(describe_parity(exported.parity))
    if exported.comparison is not None:
        tell(exported.comparison.describe())
    tell(f"{exported.bundle.path}: {exported.bundle.name} {exported.bundle.fingerprint}")
    _warn_of_unchecked(exported.bundle)
    return 0


def _text_file(option: str, path: Path | None) -> "TextFile | None":
    from plaudit_export.checkpoints.rules import TextFile
    from plaudit_export.checks.text_files import read_items
    from plaudit_service.bundles.bundle import sha256_of

    return None if path is None else TextFile(read_items(option, path), sha256_of(path))


def _inspect(parsed: argparse.Namespace) -> int:
    from plaudit_export.checks.report import describe_bundle
    from plaudit_service.bundles.bundle import load_bundle
    from plaudit_service.errors import BundleError

    try:
        print(describe_bundle(load_bundle(parsed.bundle)))
    except BundleError as error:
        raise SourceError(str(error)) from error
    return 0


def _verify(parsed: argparse.Namespace) -> int:
    from plaudit_export.checks.report import describe_parity
    from plaudit_export.progress import elapsed
    from plaudit_service.errors import BundleError, ServiceError, SettingsError
    from plaudit_service.serving import parity
    from plaudit_service.serving.scorer import Scorer

    try:
        with elapsed("checking"):
            scorer = Scorer(parsed.bundle, device=parsed.device)
            report = parity.check(scorer)
    except (BundleError, SettingsError) as error:
        raise SourceError(str(error)) from error
    except ServiceError as error:
        raise ExportError(str(error)) from error
    if not report.ok:
        raise ParityError(f"{parsed.bundle}: {report.describe_worst()}", describe_parity(report))
    print(describe_parity(report))
    _warn_of_unchecked(scorer.bundle, graph_ran=True)
    return 0


def _warn_of_unchecked(bundle: "Bundle", *, graph_ran: bool = False) -> None:
    from plaudit_export.checks.report import describe_unchecked

    if unchecked := describe_unchecked(bundle, graph_ran=graph_ran):
        say(f"{PROG}: warning: {unchecked}")


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise SourceError(f"{path}: cannot be read ({error})") from error


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog=PROG, description="Export a reward-model checkpoint to a verified bundle, and inspect bundles."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=Parser)
    _add_checkpoint(commands.add_parser("checkpoint", help="export a checkpoint to a bundle"))
    _add_cache(commands.add_parser("cache", help="export a checkpoint to a bundle in a cache, if it is not there yet"))
    _add_rules(
        commands.add_parser("rules", help="find out by preference pairs which text rule a checkpoint was trained with")
    )
    _add_onnx(commands.add_parser("onnx", help="convert a directory made by `optimum-cli export onnx` to a bundle"))
    inspect = commands.add_parser("inspect", help="describe a bundle, and check the hash of every file")
    inspect.add_argument("bundle", type=Path, metavar="BUNDLE", help="bundle directory")
    inspect.set_defaults(run=_inspect)
    verify = commands.add_parser(
        "verify", help="score a bundle's golden texts as the service does, and compare with the references"
    )
    verify.add_argument("bundle", type=Path, metavar="BUNDLE", help="bundle directory")
    verify.add_argument(
        "--device",
        type=_device,
        default="cpu",
        help="device that computes, as for plaudit-serve: cpu, cuda or cuda:N (default: cpu)",
    )
    verify.set_defaults(run=_verify)
    return parser


def _add_checkpoint(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Export a *ForSequenceClassification checkpoint (safetensors, fast tokenizer) to a bundle. The "
        "bundle is written only if the serving code gives the reference score for every golden text."
    )
    parser.set_defaults(run=_checkpoint)
    parser.add_argument("source", metavar="SOURCE", help=_SOURCE)
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="directory to make")
    _add_force(parser)
    _add_checkpoint_options(parser)


def _add_cache(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Export as `plaudit-export checkpoint` does, into a cache, and print the bundle's directory. A "
        "checkpoint is not exported again if commit or files, options and versions are the same. "
        "plaudit-serve runs this command for a checkpoint."
    )
    parser.set_defaults(run=_cache)
    parser.add_argument("source", metavar="SOURCE", help=_SOURCE)
    parser.add_argument(
        "--cache",
        type=Path,
        metavar="DIR",
        help="directory of the cache (default: plaudit/bundles in $XDG_CACHE_HOME, or in ~/.cache)",
    )
    _add_checkpoint_options(parser)


def _add_rules(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Score preference pairs with transformers under every plausible text rule (as texts or as chats, "
        "with special tokens or without, with EOS or without, with token types), and print which rule the "
        "checkpoint was trained with, or that the pairs cannot tell. The options set the rule that an export "
        "would use, for comparison."
    )
    parser.set_defaults(run=_rules)
    parser.add_argument("source", metavar="SOURCE", help=_SOURCE)
    _add_scoring_options(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")


_SOURCE = "directory of a checkpoint or LoRA adapter, or its hub id (org/name@revision)"


def _add_force(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--force", action="store_true", help="replace a bundle that already exists")


def _add_checkpoint_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--precision",
        choices=["fp32", "fp16", "bf16", "int8"],
        default="fp32",
        help="data type of the weights and the computation; fp16 and bf16 are for GPUs and have not been run on "
        "one yet; no CPU serves bf16; int8 is static quantization (default: fp32)",
    )
    add(
        "--engine",
        choices=["onnx", "vllm"],
        default="onnx",
        help="what computes the scores: onnx, a graph that this command makes, or vllm, a vLLM server that loads "
        "SOURCE itself, so the bundle holds no graph (default: onnx)",
    )
    add(
        "--calibrate",
        type=Path,
        metavar="FILE",
        help="typical texts; they set the value ranges of int8, and measure what a reduced precision changes",
    )
    add(
        "--allow-loss",
        action="store_true",
        help="accept a reduced precision that ranks less than 98 %% of text pairs as float32 does",
    )
    add(
        "--normalize-on",
        type=Path,
        metavar="FILE",
        help="reference texts, whose scores get mean 0 and standard deviation 1",
    )
    add(
        "--normalize",
        choices=["mean-std", "mean", "saved", "none"],
        help="how scores are normalized; with --normalize-on: mean-std (default), or mean alone; without it: "
        "saved, by the mean and deviation that the trainer kept in the checkpoint, or none (default: as the "
        "trainer's class does)",
    )
    _add_scoring_options(parser)
    _add_bundle_options(parser)


def _add_scoring_options(parser: argparse.ArgumentParser) -> None:
    """What says how a checkpoint scores a text."""
    add = parser.add_argument
    add(
        "--pairs",
        type=Path,
        metavar="FILE",
        help="preference pairs (chosen, rejected), which show whether the text rule is right",
    )
    add(
        "--token-logits",
        type=_token_logits,
        metavar="TOKEN[=WEIGHT],...",
        help="SOURCE is a language model, whose score is the weighted sum of the logits of these tokens after the "
        "text; id:N for the token with id N",
    )
    add(
        "--step-token",
        type=_token,
        metavar="TOKEN",
        help="SOURCE scores steps, and this token ends each step; id:N for the token with id N",
    )
    add(
        "--step-end",
        type=_step_end,
        metavar="TEXT",
        help="text after each step (\\n: a new line); without --step-token: the step_separator of TRL's trainer "
        "(default: the text of --step-token)",
    )
    add(
        "--link",
        choices=["identity", "sigmoid"],
        help="function from the weighted heads to the score; sigmoid gives a probability (default: sigmoid if two "
        "heads score steps, else identity)",
    )
    add(
        "--pad-token",
        metavar="TOKEN",
        help="pad token of the trainer, '' for none (default: that of the config; for an adapter, that of its "
        "tokenizer)",
    )
    _add_rule_options(parser)


def _add_onnx(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Convert a text-classification graph of another exporter, such as optimum, to a bundle. Give the checkpoint "
        "that the graph was made from, so that the graph's scores are checked against the checkpoint's own."
    )
    parser.set_defaults(run=_onnx)
    parser.add_argument("source", type=Path, metavar="DIR", help="directory with model.onnx, config and tokenizer")
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="directory to make")
    parser.add_argument(
        "--checkpoint", metavar="SOURCE", help="directory or hub id of the checkpoint whose scores are the reference"
    )
    _add_force(parser)
    _add_rule_options(parser)
    _add_bundle_options(parser)


def _add_rule_options(parser: argparse.ArgumentParser) -> None:
    from plaudit_export.recipes.table import RECIPES

    add = parser.add_argument
    flag = argparse.BooleanOptionalAction
    add(
        "--recipe",
        choices=RECIPES,
        help="text rules of the trainer that made the model (default: what the model's files say, else template); "
        "each option below sets one rule (default: the recipe's)",
    )
    add(
        "--append-eos", action=flag, help="append EOS to texts, for a model that was trained on texts that end with EOS"
    )
    add("--strip-newlines", action=flag, help="remove newlines at the end of a finished text")
    add("--space-before-eos", action=flag, help="append a space before EOS")
    add(
        "--add-special-tokens",
        action=flag,
        help="add the tokenizer's special tokens to a text and to prompt + completion",
    )
    add(
        "--chat-special-tokens",
        action=flag,
        help="add the tokenizer's special tokens to chats too, as tokenizer(rendered chat) does, but no second BOS",
    )
    add(
        "--builtin-class",
        action="store_true",
        help="use transformers' own class even if the config's auto_map names custom code, which is never run",
    )
    add("--pair", action="store_true", help="the model was trained on (prompt, completion) pairs (default: no)")
    add(
        "--max-tokens",
        type=_positive,
        metavar="N",
        help="longest text, in tokens (default: the model's usable positions)",
    )
    add(
        "--heads",
        type=_heads,
        metavar="NAME[=WEIGHT],...",
        help="name of each head and its weight in the score (default: the config's labels, weight 1)",
    )
    add("--chat-template", type=Path, metavar="FILE", help="file with a Jinja chat template (default: the tokenizer's)")


def _add_bundle_options(parser: argparse.ArgumentParser) -> None:
    """What the bundle is called, and what its served scores are held against."""
    add = parser.add_argument
    add("--name", help="name of the model in requests (default: the last part of SOURCE)")
    add("--golden", type=Path, metavar="FILE", help="file with more texts to check: one item of POST /score per line")
    add(
        "--golden-max-tokens",
        type=_positive,
        metavar="N",
        help="longest built-in text to check, in tokens; long texts take time, also at every start of the service "
        "(default: 4096)",
    )
    add(
        "--device",
        type=_device,
        default="cpu",
        metavar="cpu|cuda[:N]",
        help="device on which transformers computes the reference scores, in float32, one layer after the other "
        "(default: cpu)",
    )
    add(
        "--tolerance",
        type=_tolerance,
        metavar="X",
        help="largest allowed |served - reference| / max(1, |reference|) (default: 1e-5; for fp16 and int8 what "
        "was measured)",
    )


def _positive(text: str) -> int:
    if not _is_count(text) or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of tokens")
    return int(text)


def _device(text: str) -> str:
    kind, colon, number = text.partition(":")
    if text != "cpu" and not (kind == "cuda" and (_is_count(number) if colon else True)):
        raise argparse.ArgumentTypeError(f"{text!r} is not cpu, cuda or cuda:N")
    return text


def _is_count(text: str) -> bool:
    return text.isdecimal() and len(text) <= _MAX_DIGITS


def _tolerance(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return value


def _token_logits(text: str) -> list[tuple[str, float]]:
    heads = _heads(text)
    for name, _ in heads:
        _token(name)
    return heads


def _token(text: str) -> str:
    number = text.removeprefix(BY_ID)
    if text.startswith(BY_ID) and not _is_count(number):
        raise argparse.ArgumentTypeError(f"{text!r}: {number!r} is not a token id")
    return text


def _step_end(text: str) -> str:
    text = text.replace(r"\n", "\n")
    if not text:
        raise argparse.ArgumentTypeError("it is empty, and nothing would end a step")
    return text


def _heads(text: str) -> list[tuple[str, float]]:
    heads = []
    for part in text.split(","):
        name, _, weight = part.partition("=")
        try:
            heads.append((name.strip(), float(weight or 1)))
        except ValueError:
            raise argparse.ArgumentTypeError(f"{part!r}: {weight!r} is not a number") from None
    names = [name for name, _ in heads]
    if not all(names) or len(set(names)) < len(names) or not all(math.isfinite(weight) for _, weight in heads):
        raise argparse.ArgumentTypeError(f"{text!r}: give each head one name of its own and a finite weight")
    return heads
