"""A process reward model behind the real service, and its values on shared prefixes and in batches."""

import httpx2

from plaudit_client import RewardClient
from plaudit_service import Scorer
from plaudit_service.testing import running_service

PROMPT = "How many legs have three cats and a bird?\nThink in steps. " * 3
STEPS = (["Three cats have 12."], ["A bird has 2.", "So 14."], ["12", "and 2", "are 14 😀"])


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
