"""The reward function and the reward manager, called as verl 0.9 calls them."""

import asyncio
import sys
from types import SimpleNamespace

import pytest

from plaudit_client import InvalidArgument, PlauditError, RewardClient
from plaudit_client.adapters import verl as adapter
from plaudit_client.testing import FakeService


@pytest.fixture
def client(monkeypatch):
    """A client without a network in place of the adapter's own."""
    service = FakeService(lambda item: "too_long" if "long" in str(item) else float(len(item.get("messages", [1]))))
    with RewardClient("http://fake", transport=service) as client:
        monkeypatch.setattr(adapter, "_client", lambda url, pid: client)
        yield client


def compute(extra_info, **options):
    arguments = {"data_source": "d", "solution_str": "a", "ground_truth": None, "extra_info": extra_info}
    return asyncio.run(adapter.compute_score(**arguments, **options))


def test_the_prompt_comes_from_extra_info_and_the_keys_are_the_same_every_time(client):
    chat = [{"role": "user", "content": "Hi", "name": None}, {"role": "assistant", "content": "Ho"}]
    answers = [compute({"prompt": "Hi"}), compute({"chat": chat}, prompt_key="chat", reward_router_address="x")]
    assert [answer["score"] for answer in answers] == [1.0, 3.0]
    assert {tuple(answer) for answer in answers} == {("score", "num_tokens", "truncated")}


def test_without_a_prompt_it_refuses_and_says_what_to_do(client):
    for extra_info in (None, {}, {"question": "Hi"}):
        with pytest.raises(InvalidArgument, match=r'has no "prompt".*PlauditRewardManager'):
            compute(extra_info)


def test_a_rollout_without_a_score_raises_and_is_no_number(client):
    with pytest.raises(PlauditError, match="a rollout has no score: too_long"):
        compute({"prompt": "long"})


def test_verl_is_only_imported_when_its_manager_is_asked_for(monkeypatch):
    assert "verl" not in sys.modules
    with pytest.raises(AttributeError, match="nothing"):
        _ = adapter.nothing
    monkeypatch.setitem(sys.modules, "verl", None)
    with pytest.raises(ImportError):
        _ = adapter.PlauditRewardManager


def test_the_manager_scores_the_chat_with_the_completion(client, monkeypatch):
    torch = pytest.importorskip("torch")
    adapter._reward_manager_class.cache_clear()

    class Base:
        def __init__(self, config, tokenizer, compute_score):
            self.tokenizer = tokenizer

    base = "verl.experimental.reward_loop.reward_manager.base"
    for name in [base.rsplit(".", at)[0] for at in range(1, 5)]:
        monkeypatch.setitem(sys.modules, name, SimpleNamespace(__path__=[]))
    monkeypatch.setitem(sys.modules, base, SimpleNamespace(RewardManagerBase=Base))
    tokenizer = SimpleNamespace(eos_token_id=2, decode=lambda ids, skip_special_tokens: f"{ids}")
    manager = adapter.PlauditRewardManager(
        config=None, tokenizer=tokenizer, compute_score=None, reward_router_address="x"
    )
    adapter._reward_manager_class.cache_clear()
    rollout = SimpleNamespace(
        batch={"responses": torch.tensor([5, 2, 0, 0]), "attention_mask": torch.tensor([1, 1, 1, 1, 0, 0])},
        non_tensor_batch={"raw_prompt": [{"role": "user", "content": "Hi"}]},
    )
    answer = asyncio.run(manager.run_single([rollout]))
    assert answer["reward_score"] == 2.0
    assert answer["reward_extra_info"].keys() == {"num_tokens", "truncated"}
    # The last of several sequences, padded to the longest: its mask ends before the columns of the responses do.
    rollout.batch["attention_mask"] = torch.tensor([1, 1, 1, 0, 0, 0])
    rollout.non_tensor_batch["response_len"] = 2
    completions = []
    monkeypatch.setattr(tokenizer, "decode", lambda ids, skip_special_tokens: completions.append(ids) or "text")
    asyncio.run(manager.run_single([rollout]))
    assert completions == [[5, 2]]
