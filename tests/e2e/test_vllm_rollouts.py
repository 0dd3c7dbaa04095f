"""Rollouts by real vLLM servers on the CPU, which train a tiny policy. `make test-vllm` makes their environment."""

import hashlib
import itertools

import pytest
import torch
from ppo_runs import write_policy
from vllm_process import VLLMServer, python_of_vllm, vllm_server

from plaudit_client import Score
from plaudit_ppo import PPOConfig, PPOTrainer, Prompt, add_lora, frozen_copy, load_critic, load_policy
from plaudit_ppo.engine import versions
from plaudit_ppo.engine.vllm import Engine
from plaudit_ppo.errors import EngineError
from plaudit_ppo.runs.log import read_log

pytestmark = pytest.mark.slow
ITERATIONS = 6
PROMPTS = [Prompt(text="so"), Prompt(text="very very"), Prompt(text="so very good")]
LORA = ("--enable-lora", "--max-lora-rank", "8", "--max-loras", "1")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    python_of_vllm()
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("vllm")
    for name, tied in (("untied", False), ("tied", True)):
        write_policy(folder / name, hidden_size=64, num_attention_heads=2, head_dim=32, tie_word_embeddings=tied)
    return folder


@pytest.fixture(scope="module")
def server(place):
    """Of the untied policy, and of adapters of it."""
    with vllm_server(place / "untied", place / "untied.log", *LORA) as running:
        yield running


def count_of_good(items):
    return [Score("ok", item["completion"].split().count("good")) for item in items]


def train(folder, policy, url, name, *, resume=False, **settings):
    """A run of a policy; returns its log."""
    small = {"iterations": ITERATIONS, "rollout_batch_size": 16, "rollout_micro_batch_size": 8, "learning_rate": 1e-3}
    small |= {"max_completion_tokens": 12, "missing_eos": "off", "num_minibatches": 2, "lr_schedule": "constant"}
    config = PPOConfig(output=folder / name, sampler="vllm", engine_urls=(url,), **small | settings)
    model, tokenizer = load_policy(folder / policy)
    critic = load_critic(folder / policy, head_init="zero", generator=torch.Generator())
    reference = None if config.lora_rank else frozen_copy(model)
    model = add_lora(model, config) if config.lora_rank else model
    PPOTrainer(config, model, reference, critic, tokenizer, PROMPTS, count_of_good).train(resume=resume)
    return read_log(folder / name / "log.jsonl")


def policy_hash(output):
    return hashlib.sha256((output / "policy" / "model.safetensors").read_bytes()).hexdigest()


def check_logprobs(log):
    assert len(log) == ITERATIONS
    assert log[-1]["objective/kl"] > 0.01  # the weights have changed, so that old ones would show
    for line in log:
        assert line["sampler/canary_error"] < 1e-4
        assert line["val/sampling_ratio_error"] < 1e-4


# The adapter first, while the server still has the base model that it is of.
@pytest.mark.parametrize("settings", [{"lora_rank": 4}, {"lora_rank": 4, "engine_sync": "weights"}, {}],
                         ids=["adapter", "merged adapter", "whole weights"])  # fmt: skip
def test_after_every_publish_the_engine_has_the_logprobs_of_the_training_forward(place, server, settings):
    check_logprobs(train(place, "untied", server.url, "-".join(["untied", *map(str, settings.values())]), **settings))


def test_two_runs_of_one_seed_end_in_the_same_policy(place, server):
    for name in ("one", "two"):
        train(place, "untied", server.url, name)
    assert policy_hash(place / "one") == policy_hash(place / "two")


def test_a_publish_that_an_engine_skips_is_noticed_before_its_next_completion(place, server, monkeypatch):
    load = Engine.load_weights

    async def load_the_first(engine, directory):
        if directory.name == "version-000000":
            await load(engine, directory)

    monkeypatch.setattr(Engine, "load_weights", load_the_first)
    with pytest.raises(EngineError, match=r"version 1 of the policy, .* come from other weights.* checkpoint: "):
        train(place, "untied", server.url, "skipped")
    assert len(read_log(place / "skipped" / "log.jsonl")) == 1


def test_a_tied_policy_has_its_head_renewed_and_one_that_is_not_is_noticed(place, monkeypatch):
    """vLLM answers 200 to weights without a head, and keeps the old one."""
    with vllm_server(place / "tied", place / "tied.log") as server:
        check_logprobs(train(place, "tied", server.url, "tied-run"))
        monkeypatch.setattr(versions, "_untied", dict)
        with pytest.raises(EngineError, match=r"version \d of the policy, .* come from other weights"):
            train(place, "tied", server.url, "tied-head")


@pytest.mark.parametrize("kill", [VLLMServer.kill, VLLMServer.kill_core], ids=["server", "core"])
def test_a_run_whose_engine_is_killed_goes_on_with_another_to_the_same_policy(place, monkeypatch, request, kill):
    name = f"killed-{request.node.callspec.id}"
    complete, calls = Engine.complete, itertools.count()
    with vllm_server(place / "untied", place / f"{name}.log") as server:

        async def complete_or_kill(engine, *arguments, **options):
            if next(calls) == 50:  # in the third iteration, with others in flight
                kill(server)
            return await complete(engine, *arguments, **options)

        monkeypatch.setattr(Engine, "complete", complete_or_kill)
        with pytest.raises(EngineError, match=f"^engine {server.url}: .*; checkpoint: .*/iteration-000002$"):
            train(place, "untied", server.url, name)
    with vllm_server(place / "untied", place / f"{name}.log") as server:
        train(place, "untied", server.url, name, resume=True)
        train(place, "untied", server.url, f"{name}-not")
    assert policy_hash(place / name) == policy_hash(place / f"{name}-not")
