"""The reward function and the reward manager, called as verl 0.9 calls them."""

import asyncio
import json
import sys
from concurrent.futures import Future
from types import SimpleNamespace

import pytest

from plaudit_client import InvalidArgument, PlauditError, RewardClient, Score
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


@pytest.fixture
def manager_class(monkeypatch):
    """`PlauditRewardManager` above a stand-in of verl's base class."""
    adapter._reward_manager_class.cache_clear()

    class Base:
        def __init__(self, config, tokenizer, compute_score):
            self.tokenizer = tokenizer

    base = "verl.experimental.reward_loop.reward_manager.base"
    for name in [base.rsplit(".", at)[0] for at in range(1, 5)]:
        monkeypatch.setitem(sys.modules, name, SimpleNamespace(__path__=[]))
    monkeypatch.setitem(sys.modules, base, SimpleNamespace(RewardManagerBase=Base))
    yield adapter.PlauditRewardManager
    adapter._reward_manager_class.cache_clear()


def make_tokenizer(path):
    return SimpleNamespace(
        eos_token_id=2, name_or_path=str(path), decode=lambda ids, skip_special_tokens: " ".join(map(str, ids))
    )


def test_the_manager_scores_the_chat_with_the_completion(client, manager_class, monkeypatch, tmp_path):
    torch = pytest.importorskip("torch")
    tokenizer = make_tokenizer(tmp_path)
    manager = manager_class(config=None, tokenizer=tokenizer, compute_score=None, reward_router_address="x")
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


@pytest.mark.parametrize(
    ("listed", "of_class", "ended"),
    [([2, 7], None, [True, True, False]), (7, None, [True, True, False]), (None, None, [True, False, False]),
     ([2, 7], [9], [False, False, True])],
)  # fmt: skip
def test_every_eos_of_tokenizer_and_generation_config_ends_a_turn(
    client, manager_class, monkeypatch, tmp_path, listed, of_class, ended
):
    torch = pytest.importorskip("torch")
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": listed}))
    monkeypatch.setattr(manager_class, "eos_token_id", of_class)
    manager = manager_class(config=None, tokenizer=make_tokenizer(tmp_path), compute_score=None)
    items = []
    monkeypatch.setattr(client, "submit", lambda batch, **_: items.extend(batch) or scored())
    for last in (2, 7, 9):
        rollout = SimpleNamespace(
            batch={"responses": torch.tensor([5, last]), "attention_mask": torch.tensor([1, 1, 1])},
            non_tensor_batch={"raw_prompt": [{"role": "user", "content": "Hi"}]},
        )
        asyncio.run(manager.run_single([rollout]))
    assert [item["finished"] for item in items] == ended


def test_without_a_generation_config_the_tokenizers_eos_ends_a_turn(manager_class, tmp_path):
    manager = manager_class(config=None, tokenizer=make_tokenizer(tmp_path / "absent"), compute_score=None)
    assert manager._eos_ids == {2}
    monkeypatched = type("Own", (manager_class,), {"eos_token_id": "</s>"})
    with pytest.raises(InvalidArgument, match="eos_token_id: got '</s>'"):
        monkeypatched(config=None, tokenizer=make_tokenizer(tmp_path), compute_score=None)


def scored():
    future = Future()
    future.set_result([Score("ok", 1.0)])
    return future
