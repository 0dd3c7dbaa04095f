"""Runs of the trainer by engines that speak vLLM's routes over real sockets."""

from contextlib import ExitStack

import pytest
from fake_vllm import fake_engines


@pytest.fixture
def train(make_trainer, make_policy, tokenizer):
    """A function that trains by fake engines, which stay there until the test ends; returns the run and the engines."""
    with ExitStack() as stack:

        def train(*, count=1, fault=None, after=0, policy=None, base=None, engines=None, resume=False,
                  on_iteration=None, **settings):  # fmt: skip
            policy = policy or make_policy()
            opened = stack.enter_context(fake_engines(base or policy, tokenizer, count=count, fault=fault, after=after))
            if engines is not None:
                engines += opened
            urls = [engine.url for engine in opened]
            run = make_trainer(policy=policy, sampler="vllm", engine_urls=urls, **settings)
            run.train(resume=resume, on_iteration=on_iteration and (lambda metrics: on_iteration(metrics, opened[0])))
            return run, opened

        yield train
