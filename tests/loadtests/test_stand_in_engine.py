"""The stand-in for vLLM's server under which `make chaos` trains."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from accelerate import Accelerator
from nemesis.models import write_policy
from stand_in_engine import StandInEngine, make_server
from transformers import AutoModelForCausalLM, AutoTokenizer

from plaudit_ppo import PPOConfig
from plaudit_ppo.distributed.learner import Learner
from plaudit_ppo.engine.sampler import EngineSampler


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two policies: the one that engines start with, and another."""
    folder = tmp_path_factory.mktemp("policies")
    for name in ("first", "second"):
        write_policy(folder / name)
    policy = AutoModelForCausalLM.from_pretrained(folder / "first")
    with torch.no_grad():
        policy.lm_head.weight.mul_(-1)
    policy.save_pretrained(folder / "second")
    return folder


def complete(engine, seed=0):
    asked = {"prompt": [6, 7], "seed": seed, "max_tokens": 8, "temperature": 1.0 + 1e-7, "stop_token_ids": [0]}
    _, answer = engine.answer("/v1/completions", asked)
    return answer["choices"][0]


def load(engine, path):
    engine.answer("/collective_rpc", {"method": "reload_weights", "kwargs": {"weights_path": str(path)}})


def test_a_completion_is_a_function_of_its_request_and_the_weights(folder):
    engine, started_again = StandInEngine(folder / "first"), StandInEngine(folder / "first")
    alone = [complete(engine, seed) for seed in range(8)]
    assert len({tuple(each["token_ids"]) for each in alone}) > 1
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda seed: complete(engine, seed), range(8))) == alone
    load(engine, folder / "second")
    assert [complete(engine, seed) for seed in range(8)] != alone
    assert [complete(started_again, seed) for seed in range(8)] == alone


def test_what_is_asked_between_pause_and_resume_is_sampled_by_the_weights_that_are_loaded_meanwhile(folder):
    engine, other = StandInEngine(folder / "first"), StandInEngine(folder / "second")
    engine.answer("/pause?mode=wait", {})
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(complete, engine)
        load(engine, folder / "second")
        engine.answer("/resume", {})
        assert asked.result() == complete(other)


def test_the_trainer_takes_it_for_an_engine_that_has_the_policy(folder):
    server = make_server(StandInEngine(folder / "first"), 0)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        policy = AutoModelForCausalLM.from_pretrained(folder / "second").eval()
        config = PPOConfig(
            output=folder / "run", sampler="vllm", engine_urls=(f"http://127.0.0.1:{server.server_address[1]}",),
            max_completion_tokens=8, temperature=1.0, rollout_micro_batch_size=4,
        )  # fmt: skip
        learner = Learner(policy, policy, (), Accelerator(cpu=True), 0.0)
        tokenizer = AutoTokenizer.from_pretrained(folder / "first")
        sampler = EngineSampler(config, learner, tokenizer, [[6, 7], [2]], eos_ids=(0,), pad_id=1)
        sampler.publish(1)
        assert sampler.canary_error < 1e-4
        with sampler.sampling([[6, 7], [2], [6], [7]], iteration=1) as parts:
            (rollouts,) = list(parts)
        assert rollouts.completion_ids.shape[0] == 4
    finally:
        server.shutdown()
        server.server_close()
