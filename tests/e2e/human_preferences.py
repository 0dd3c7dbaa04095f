"""A reward model trained on real human preferences, exported, served, and held against its torch checkpoint.

Trains the MiniLM encoder on pairs of hh-harmless (Bai et al. 2022), scores held-out pairs with `plaudit-score` over
HTTP, and compares every score and the pair accuracy with transformers, float32, one text at a time.

    make human-preferences        or        .venv/bin/python tests/e2e/human_preferences.py --help
"""

import argparse
import gzip
import json
import math
import os
import random
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from tqdm import tqdm
from transformers import AutoTokenizer, BertForSequenceClassification, PreTrainedTokenizerBase

from plaudit_export.testing import minilm_encoder
from plaudit_service.testing import running_service

ROOT = Path(__file__).resolve().parents[2]
TOLERANCE = 1e-5
NUM_TRAINING_PAIRS = 1500
NUM_HELD_OUT_PAIRS = 300

Pair = dict[str, str]


@dataclass(frozen=True)
class Outcome:
    """What the comparison showed."""

    pairs_trained: int
    training_pairs_too_long: int
    training_seconds: float
    held_out_pairs: int
    held_out_pairs_too_long: int
    pair_accuracy_torch: float
    pair_accuracy_served: float
    score_std: float
    max_abs_diff: float
    max_diff_over_allowed: float

    @property
    def equal(self) -> bool:
        """Whether served and torch scores agree, one by one and in the accuracy."""
        return self.max_diff_over_allowed <= 1 and self.pair_accuracy_torch == self.pair_accuracy_served


def main() -> int:
    """Run it all and print what came out; exit code 1 when the scores differ."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=5.0, help="limit of the training time (default: %(default)s)")
    parser.add_argument("--train", type=int, default=NUM_TRAINING_PAIRS, help="training pairs (default: %(default)s)")
    parser.add_argument(
        "--held-out", type=int, default=NUM_HELD_OUT_PAIRS, help="held-out pairs (default: %(default)s)"
    )
    parser.add_argument("--output", type=Path, default=ROOT / "runs" / "human-preferences", help="default: %(default)s")
    parser.add_argument("--reuse", action="store_true", help="take the checkpoint that an earlier run left in --output")
    parser.add_argument("--int8", action="store_true", help="only export it in int8 and print what that costs")
    options = parser.parse_args()
    data = Path(os.environ.get("PLAUDIT_DATA", ROOT.parent / "shared" / "data")) / "hh-harmless" / "pairs.jsonl.gz"
    if not data.exists():
        print(f"human-preferences: error: {data} does not exist; set PLAUDIT_DATA", file=sys.stderr)
        return 2
    pairs = read_pairs(data)
    training, held_out = pairs[: options.train], pairs[-options.held_out :]
    if not options.reuse:
        train_to(options.output, training, max_seconds=60 * options.minutes)
    if options.int8:
        print(json.dumps(export_int8(training, held_out, options.output), indent=2))
        return 0
    outcome = evaluate(held_out, options.output)
    print(json.dumps({**asdict(outcome), "equal": outcome.equal}, indent=2))
    return 0 if outcome.equal else 1


def train_to(output: Path, training: Sequence[Pair], *, max_seconds: float) -> None:
    """Train, and leave the checkpoint and the figures of the training in `output`."""
    output.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    model, tokenizer, num_trained, num_too_long = train(training, max_seconds=max_seconds)
    training_seconds = time.monotonic() - started
    model.save_pretrained(output / "checkpoint")
    tokenizer.save_pretrained(output / "checkpoint")
    figures = {
        "pairs_trained": num_trained,
        "training_pairs_too_long": num_too_long,
        "training_seconds": round(training_seconds, 1),
    }
    (output / "training.json").write_text(json.dumps(figures), encoding="utf-8")


def evaluate(held_out: Sequence[Pair], output: Path) -> Outcome:
    """Export, serve, score, compare; every artefact stays in `output`."""
    served = score_over_http(held_out, output)
    reference = score_with_torch(held_out, output / "checkpoint")
    return compare(served, reference, **json.loads((output / "training.json").read_text(encoding="utf-8")))


def export_int8(training: Sequence[Pair], held_out: Sequence[Pair], output: Path) -> dict[str, object]:
    """Export in int8, calibrated on training texts; what it costs on held-out ones (the last third of the file)."""
    calibrating, measuring = training[: len(held_out) * 2], held_out
    texts = [text for pair in [*calibrating, *measuring] for text in (pair["chosen"], pair["rejected"])]
    file = output / "calibrate.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    export = Path(sys.executable).with_name("plaudit-export")
    flags = ["--precision", "int8", "--calibrate", file, "--force"]
    subprocess.run([export, "checkpoint", output / "checkpoint", output / "bundle-int8", *flags], check=True)
    report = json.loads((output / "bundle-int8" / "report.json").read_text(encoding="utf-8"))
    figures: dict[str, object] = report["against_float32"]
    return {**figures, "batch_invariant": report["parity"]["batch_invariant"]}


def read_pairs(path: Path) -> list[Pair]:
    """All pairs of the file, in order."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def train(
    pairs: Sequence[Pair], *, max_seconds: float, pairs_per_batch: int = 16, learning_rate: float = 5e-5
) -> tuple[BertForSequenceClassification, PreTrainedTokenizerBase, int, int]:
    """One epoch of -log sigmoid(chosen - rejected) over batches of close length, or as much as the time allows.

    Returns:
        The model in evaluation mode, its tokenizer, the number of pairs trained on, and of pairs left out as too long.
    """
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(minilm_encoder())
    model = BertForSequenceClassification.from_pretrained(minilm_encoder(), num_labels=1)
    limit = model.config.max_position_embeddings
    encoded = [[tokenizer(pair[side])["input_ids"] for side in ("chosen", "rejected")] for pair in pairs]
    fitting = sorted((pair for pair in encoded if max(map(len, pair)) <= limit), key=lambda pair: max(map(len, pair)))
    batches = [fitting[at : at + pairs_per_batch] for at in range(0, len(fitting), pairs_per_batch)]
    random.Random(0).shuffle(batches)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate)
    model.train()
    num_trained = 0
    end = time.monotonic() + max_seconds
    progress = tqdm(total=len(fitting), desc="training on human preferences", unit="pair", file=sys.stderr)
    for batch in batches:
        if time.monotonic() > end:
            break
        texts = [chosen for chosen, _ in batch] + [rejected for _, rejected in batch]
        inputs = tokenizer.pad({"input_ids": texts}, return_tensors="pt")
        chosen, rejected = model(**inputs).logits[:, 0].chunk(2)
        loss = -torch.nn.functional.logsigmoid(chosen - rejected).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        num_trained += len(batch)
        progress.update(len(batch))
        progress.set_postfix(loss=f"{loss.item():.3f}")
    progress.close()
    return model.eval(), tokenizer, num_trained, len(pairs) - len(fitting)


def score_over_http(pairs: Sequence[Pair], output: Path) -> list[dict[str, dict[str, object]]]:
    """Export and serve the checkpoint, and score the pairs with `plaudit-score`: one result for each text."""
    export, score = (Path(sys.executable).with_name(f"plaudit-{name}") for name in ("export", "score"))
    bundle, held_out, scores = output / "bundle", output / "held-out.jsonl", output / "scores.jsonl"
    held_out.write_text("".join(json.dumps(pair) + "\n" for pair in pairs), encoding="utf-8")
    subprocess.run([export, "checkpoint", output / "checkpoint", bundle, "--force"], check=True)
    with running_service(bundle, log=output / "service.log") as service:
        subprocess.run([score, "--url", service.url, held_out, "-o", scores, "--allow-failures"], check=True)
    return [json.loads(line) for line in scores.read_text(encoding="utf-8").splitlines()]


@torch.inference_mode()
def score_with_torch(pairs: Sequence[Pair], checkpoint: Path) -> list[dict[str, float | None]]:
    """The checkpoint's own scores, float32, one text at a time; None where a text is longer than the positions."""
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    model = BertForSequenceClassification.from_pretrained(checkpoint).eval()
    scores: list[dict[str, float | None]] = []
    for pair in tqdm(pairs, desc="scoring with torch", unit="pair", file=sys.stderr):
        inputs = {side: tokenizer(pair[side], return_tensors="pt") for side in ("chosen", "rejected")}
        scores.append(
            {
                side: model(**encoded).logits.item()
                if encoded["input_ids"].shape[1] <= model.config.max_position_embeddings
                else None
                for side, encoded in inputs.items()
            }
        )
    return scores


def compare(
    served: Sequence[dict[str, dict[str, object]]],
    reference: Sequence[dict[str, float | None]],
    **training: float,
) -> Outcome:
    """Hold served against torch scores; a pair with a text that is too long is left out of both sides."""
    differences, ratios, both = [], [], []
    for line, torch_scores in zip(served, reference, strict=True):
        pair = {}
        for side, expected in torch_scores.items():
            result = line[side]
            assert result["status"] == ("ok" if expected is not None else "too_long"), result["status"]
            pair[side] = expected, result["score"]
            if expected is not None:
                difference = abs(float(str(result["score"])) - expected)
                differences.append(difference)
                ratios.append(difference / (TOLERANCE * max(1.0, abs(expected))))
        if all(expected is not None for expected, _ in pair.values()):
            both.append(pair)
    accuracy = [sum(pair["chosen"][of] > pair["rejected"][of] for pair in both) / len(both) for of in (0, 1)]
    scores = torch.tensor([pair[side][0] for pair in both for side in ("chosen", "rejected")])
    return Outcome(
        held_out_pairs=len(reference),
        held_out_pairs_too_long=len(reference) - len(both),
        pair_accuracy_torch=accuracy[0],
        pair_accuracy_served=accuracy[1],
        score_std=round(scores.std().item(), 4),
        max_abs_diff=max(differences, default=math.inf),
        max_diff_over_allowed=max(ratios, default=math.inf),
        **training,
    )


if __name__ == "__main__":
    sys.exit(main())
