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
        raise SourceError("--normalize: mean-std and mean need --normalize-on FILE; saved and none go without it")
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
                f"--engine vllm --{option.replace('_', '-')}: vLLM is asked with the ids of one text and answers with "
                "the checkpoint's own head; export it without --engine"
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

    options = {name: value for name, value in vars(parsed).items() if name not in {"run", "source", "cache"}}
    print(cached_bundle(parsed.source, options, export, cache=parsed.cache, say=_step))
    return 0


def _rules(parsed: argparse.Namespace) -> int:
    _require_docstrings()
    from plaudit_export.checkpoints.checkpoint import load_checkpoint
    from plaudit_export.checkpoints.rules import Options, derive_rules
    from plaudit_export.checks.pair_rules import ask_pairs

    if parsed.pairs is None:
        raise SourceError("rules: give preference pairs with --pairs FILE")
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
        raise SourceError("transformers reads docstrings, which -OO strips; run without it (PYTHONOPTIMIZE=2)")


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
        prog=PROG, description="Turn a reward-model checkpoint into a verified bundle, and look at bundles."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=Parser)
    _add_checkpoint(commands.add_parser("checkpoint", help="checkpoint -> bundle"))
    _add_cache(commands.add_parser("cache", help="checkpoint -> bundle in a cache, once"))
    _add_rules(commands.add_parser("rules", help="by which text rule a checkpoint was trained: preference pairs tell"))
    _add_onnx(commands.add_parser("onnx", help="a directory made by `optimum-cli export onnx` -> bundle"))
    inspect = commands.add_parser("inspect", help="what a bundle is; checks every hash")
    inspect.add_argument("bundle", type=Path, metavar="BUNDLE", help="bundle directory")
    inspect.set_defaults(run=_inspect)
    verify = commands.add_parser("verify", help="score the golden texts as the service does, and compare")
    verify.add_argument("bundle", type=Path, metavar="BUNDLE", help="bundle directory")
    verify.add_argument(
        "--device",
        type=_device,
        default="cpu",
        help="what computes: cpu, cuda or cuda:N, as of plaudit-serve (default: cpu)",
    )
    verify.set_defaults(run=_verify)
    return parser


def _add_checkpoint(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Turn a *ForSequenceClassification checkpoint (safetensors, fast tokenizer) into a bundle. "
        "Nothing is written unless every golden text gets its reference score through the serving path."
    )
    parser.set_defaults(run=_checkpoint)
    parser.add_argument("source", metavar="SOURCE", help=_SOURCE)
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="directory to make")
    _add_force(parser)
    _add_checkpoint_options(parser)


def _add_cache(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Export as `plaudit-export checkpoint` does, once, into a cache, and print the bundle's directory. What is "
        "there already is not exported again: the same commit, or files of the same bytes, with the same options, by "
        "the same versions. plaudit-serve runs this for a checkpoint."
    )
    parser.set_defaults(run=_cache)
    parser.add_argument("source", metavar="SOURCE", help=_SOURCE)
    parser.add_argument(
        "--cache", type=Path, metavar="DIR", help="(default: plaudit/bundles in $XDG_CACHE_HOME, or in ~/.cache)"
    )
    _add_checkpoint_options(parser)


def _add_rules(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Score preference pairs with transformers under every plausible text rule (as texts or as chats, with special "
        "tokens or without, with EOS or without, with token types), and say by which rule the checkpoint was evidently "
        "trained, or that the pairs cannot tell. The options say by which rule it would be exported."
    )
    parser.set_defaults(run=_rules)
    parser.add_argument("source", metavar="SOURCE", help=_SOURCE)
    _add_scoring_options(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")


_SOURCE = "checkpoint or LoRA adapter directory, or hub id (org/name@revision)"


def _add_force(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--force", action="store_true", help="replace a bundle that is there already")


def _add_checkpoint_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--precision",
        choices=["fp32", "fp16", "bf16", "int8"],
        default="fp32",
        help="of the weights and the computation; fp16 and bf16 are for GPUs, never run on one yet, and no CPU serves "
        "bf16; int8 is static (default: fp32)",
    )
    add(
        "--engine",
        choices=["onnx", "vllm"],
        default="onnx",
        help="what computes the scores: a graph that is made here, or a vLLM server that loads SOURCE by itself; then "
        "the bundle holds no graph (default: onnx)",
    )
    add("--calibrate", type=Path, metavar="FILE", help="texts like those to score: int8's ranges, and what it costs")
    add("--allow-loss", action="store_true", help="accept under 98 %% of text pairs ranked as float32 ranks them")
    add("--normalize-on", type=Path, metavar="FILE", help="reference texts whose scores get mean 0 and deviation 1")
    add(
        "--normalize",
        choices=["mean-std", "mean", "saved", "none"],
        help="what --normalize-on brings to 0 and 1: mean and deviation, or the mean alone (default: mean-std); "
        "saved: by what the trainer kept in the checkpoint; none: not even so (default: as the trainer's class does)",
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
        help="preference pairs (chosen, rejected), which are asked whether the text rule is right",
    )
    add(
        "--token-logits",
        type=_token_logits,
        metavar="TOKEN[=WEIGHT],...",
        help="SOURCE is a language model, whose score is the weighted sum of the logits of these tokens behind the "
        "text; id:N for the token of id N",
    )
    add(
        "--step-token",
        type=_token,
        metavar="TOKEN",
        help="SOURCE scores steps, and this token ends each; id:N for the one of id N",
    )
    add(
        "--step-end",
        type=_step_end,
        metavar="TEXT",
        help=r"what stands behind each step (\n: a new line); alone: steps were made by TRL, and this is its "
        "step_separator (default: the text of --step-token)",
    )
    add(
        "--link",
        choices=["identity", "sigmoid"],
        help="what makes a score of the weighted heads; sigmoid: a probability (default: sigmoid where two heads score "
        "steps, else identity)",
    )
    add(
        "--pad-token",
        metavar="TOKEN",
        help="what the trainer padded with, '' for nothing (default: the config's; of an adapter, its tokenizer's)",
    )
    _add_rule_options(parser)


def _add_onnx(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Turn a graph of text classification that another exporter made, such as optimum, into a bundle. Give the "
        "checkpoint that it came from, so that its scores are checked against the checkpoint's own."
    )
    parser.set_defaults(run=_onnx)
    parser.add_argument("source", type=Path, metavar="DIR", help="directory with model.onnx; config and tokenizer too")
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="directory to make")
    parser.add_argument("--checkpoint", metavar="SOURCE", help="directory or hub id whose scores are the reference")
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
        help="whose text rules the model was trained by (default: what its files say, else template); the options "
        "below set one rule each (default: the recipe's)",
    )
    add("--append-eos", action=flag, help="the model was trained on texts that end with EOS")
    add("--strip-newlines", action=flag, help="newlines at the end of a finished text are left out")
    add("--space-before-eos", action=flag, help="EOS is appended behind a space")
    add(
        "--add-special-tokens",
        action=flag,
        help="text and prompt + completion get the tokenizer's special tokens",
    )
    add(
        "--chat-special-tokens",
        action=flag,
        help="chats get them too, as tokenizer(rendered chat) gives, but no second BOS",
    )
    add(
        "--builtin-class",
        action="store_true",
        help="transformers' own class is right, also where the config's auto_map names code, which is never run",
    )
    add("--pair", action="store_true", help="the model was trained on (prompt, completion) pairs (default: no)")
    add("--max-tokens", type=_positive, metavar="N", help="longest text, in tokens (default: the usable positions)")
    add(
        "--heads",
        type=_heads,
        metavar="NAME[=WEIGHT],...",
        help="name of each head and its weight in the score (default: the config's labels, weight 1)",
    )
    add("--chat-template", type=Path, metavar="FILE", help="Jinja template (default: the tokenizer's)")


def _add_bundle_options(parser: argparse.ArgumentParser) -> None:
    """What the bundle is called, and what its served scores are held against."""
    add = parser.add_argument
    add("--name", help="model name that requests use (default: the last part of SOURCE)")
    add("--golden", type=Path, metavar="FILE", help="more texts to check: one item of POST /score per line")
    add(
        "--golden-max-tokens",
        type=_positive,
        metavar="N",
        help="longest built-in text to check, in tokens: long ones take long, also at every start (default: 4096)",
    )
    add(
        "--device",
        type=_device,
        default="cpu",
        metavar="cpu|cuda[:N]",
        help="where transformers computes the reference scores, in float32, one layer after the other (default: cpu)",
    )
    add(
        "--tolerance",
        type=_tolerance,
        metavar="X",
        help="largest allowed |served - reference| / max(1, |reference|) (default: 1e-5); fp16 and int8 state "
        "what they measured",
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
