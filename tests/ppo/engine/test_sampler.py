"""The trainer and engines that speak vLLM's routes over real sockets."""

import pytest
import torch
from fake_vllm import fake_engines
from tiny_trainer import weights

from plaudit_ppo import PPOConfig, add_lora
from plaudit_ppo.errors import ConfigError, EngineError


@pytest.fixture
def with_engines(make_trainer, make_policy, tokenizer):
    """A function that trains by engines of the policy, and yields the run and the engines."""

    def train(*, count=1, fault=None, output="run", policy=None, base=None, **settings):
        policy = policy or make_policy()
        with fake_engines(base or policy, tokenizer, count=count, fault=fault) as engines:
            urls = [engine.url for engine in engines]
            run = make_trainer(policy=policy, output=output, sampler="vllm", engine_urls=urls, **settings)
            run.train()
        return run, engines

    return train


def test_what_an_engine_samples_is_learned_from(with_engines):
    run, (engine,) = with_engines(iterations=3)
    log = run.log()
    assert len(log) == 3
    assert all(line["val/sampling_ratio_error"] < 1e-4 and line["sampler/canary_error"] < 1e-4 for line in log)
    assert [path.name for path in engine.published] == ["version-000000", "version-000001", "version-000002"]
    assert [path.name for path in (run.output / "engine").iterdir()] == ["version-000002"]
