"""A process reward model behind the real service, and its values on shared prefixes and in batches."""

from pathlib import Path

import httpx2
import pytest
import transformers

from plaudit_client import RewardClient
from plaudit_export.checkpoints.rules import Options
from plaudit_export.exporter import export_checkpoint
from plaudit_export.quiet import quiet
from plaudit_export.testing import tiny_causal_checkpoint
from plaudit_service import Scorer
from plaudit_service.testing import running_service

PROMPT = "How many legs have three cats and a bird?\nThink in steps. " * 3
STEPS = (["Three cats have 12."], ["A bird has 2.", "So 14."], ["12", "and 2", "are 14 😀"])


@pytest.fixture(scope="module")
def process_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As TRL saves a process reward model: two labels for each token."""
    folder = tmp_path_factory.mktemp("process")
    decoder = tiny_causal_checkpoint(folder / "decoder", max_position_embeddings=256)
    with quiet():
        model = transformers.AutoModelForTokenClassification.from_pretrained(
            decoder, num_labels=2, ignore_mismatched_sizes=True
        )
        model.score.weight.data.normal_(std=0.3)
        model.save_pretrained(folder / "prm")
        transformers.AutoTokenizer.from_pretrained(decoder).save_pretrained(folder / "prm")
    return export_checkpoint(str(folder / "prm"), folder / "bundle", Options(name="prm", step_end="\n")).bundle.path


def test_the_values_of_steps_have_the_same_bits_alone_batched_and_on_shared_prefixes(process_bundle):
    items = [{"prompt": PROMPT, "steps": list(steps)} for steps in STEPS]
    alone = Scorer(process_bundle, share_prefixes=False)
    scorer = Scorer(process_bundle)
    for along in ("steps", "tokens"):
        batched = list(scorer.score(items, along=along))
        assert batched == [alone.score([item], along=along)[0] for item in items]
        assert [result.score for result in batched] == scorer.score(items).floats
    assert scorer.model.num_computed_prefix_tokens() > 0


def test_the_service_gives_steps_to_its_client_and_to_vllms(process_bundle):
    with running_service(process_bundle, flags=["--dialects", "vllm"]) as service:
        with RewardClient(service.url) as client:
            (score,) = client.score([{"prompt": PROMPT, "steps": list(STEPS[2])}], along="steps")
        assert score.along.trained
        assert score.along.steps == (0, 1, 2)
        assert score.score == score.along.scores[-1]
        manifest = httpx2.get(f"{service.url}/info").json()["models"][0]["manifest"]
        assert manifest["trained_at"] == "steps"
        assert manifest["scoring"]["steps"]["end"] == "\n"
        end = manifest["scoring"]["steps"]["token"]["id"]
        answer = httpx2.post(f"{service.url}/pooling", json={"model": "prm", "input": [[9, 8, end, 7, end, 9]]}).json()
        (pooled,) = Scorer(process_bundle).score([{"token_ids": [9, 8, end, 7, end, 9]}], along="steps")
        assert answer["data"][0]["data"] == [[1 - value, value] for value in pooled.along.scores]
        refused = httpx2.post(f"{service.url}/classify", json={"input": "a\n"})
        assert refused.status_code == 422
