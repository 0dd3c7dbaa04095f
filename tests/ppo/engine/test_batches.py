"""Rollout batches that are sampled ahead of their turn: one step off-policy."""

import threading
from itertools import pairwise

import pytest
import torch
from tiny_trainer import weights

from plaudit_ppo import PPOConfig, Prompt, TrunkCritic, add_lora
from plaudit_ppo.engine.vllm import Engine
from plaudit_ppo.errors import EngineError

AHEAD = {"max_staleness": 1, "sampling_correction": "token_truncate", "iterations": 4, "learning_rate": 1e-2,
         "lr_schedule": "constant", "checkpoint_every": 1, "max_checkpoints": 9, "sample_every": 1,
         "kl_controller": "adaptive"}  # fmt: skip
ROLLOUTS, CANARY = 8, 3


class KilledError(Exception):
    """Ends a run in the way of a kill: nothing is tidied up."""


def figures(run):
    """The log without what tells when a batch was sampled."""
    return [{k: v for k, v in line.items() if k != "sampler/staleness"} for line in run.log_without_times()]


def test_a_batch_is_learned_from_by_the_version_after_the_one_that_sampled_it_with_the_logprobs_of_that_one(train):
    run, (engine,) = train(**AHEAD)
    log = run.log()
    assert [line["sampler/staleness"] for line in log] == [0, 1, 1, 1]
    for line in log:
        assert line["val/sampling_ratio_error"] < 1e-4
        assert line["sampler/canary_error"] < 1e-4
    assert log[0]["objective/kl"] == log[1]["objective/kl"] == 0  # both batches are of the version that nothing changed
    assert all(later["objective/kl"] != earlier["objective/kl"] for earlier, later in pairwise(log[1:]))
    assert [path.name for path in engine.published] == [f"version-00000{version}" for version in (0, 1, 2)]
    assert log[-1]["time/generate_wait_s"] < log[-1]["time/iteration_s"]


def test_the_next_batch_is_asked_for_before_this_one_has_been_learned_from(train, monkeypatch):
    begun, complete, count = threading.Event(), Engine.complete, iter(range(1000))

    async def counted(engine, *arguments, **options):
        if next(count) == CANARY + ROLLOUTS:  # the first of the second batch; no other version was published before
            begun.set()
        return await complete(engine, *arguments, **options)

    monkeypatch.setattr(Engine, "complete", counted)
    train(**AHEAD, on_iteration=lambda metrics, engine: begun.wait(60) or pytest.fail("it was not"))


def test_where_the_policy_stands_still_a_batch_that_was_sampled_ahead_is_the_one_in_turn(train):
    """While the critic warms up, all versions are one."""
    settings = AHEAD | {"critic_warmup_iterations": 3}
    ahead, _ = train(output="ahead", **settings)
    in_turn, _ = train(output="in-turn", **settings | {"max_staleness": 0})
    assert torch.equal(ahead.trained(), in_turn.trained())
    assert figures(ahead) == figures(in_turn)
    assert [line["sampler/staleness"] for line in in_turn.log()] == [0, 0, 0, 0]


@pytest.mark.parametrize(
    ("kind", "stop"),
    [("whole", 1), ("adapter", 3), ("critic on the policy's network", 3)],
    ids=str,
)
def test_a_run_that_is_killed_while_a_batch_is_sampled_ahead_is_resumed_in_the_same_bits(
    train, make_policy, kind, stop
):
    def run(output, **options):
        policy, critic, settings = make_policy(), None, dict(AHEAD)
        if kind == "adapter":
            policy = add_lora(policy, PPOConfig(lora_rank=2))
            settings["lora_rank"] = 2
        if kind == "critic on the policy's network":
            critic = TrunkCritic(policy, head_init="normal", generator=torch.Generator().manual_seed(0))
        reference = False if kind == "adapter" else make_policy()
        return train(policy=policy, critic=critic, reference=reference, base=make_policy(), output=output,
                     **settings, **options)[0]  # fmt: skip

    def kill(metrics, _engine):
        if metrics["iteration"] == stop:
            raise KilledError

    undisturbed = run("undisturbed")
    with pytest.raises(KilledError):
        run("killed", on_iteration=kill)
    resumed = run("killed", resume=True)
    assert torch.equal(resumed.trained(), undisturbed.trained())
    assert resumed.log_without_times() == undisturbed.log_without_times()
    samples = [(path.output / "samples.jsonl").read_bytes() for path in (resumed, undisturbed)]
    assert samples[0] == samples[1]


def test_an_engine_that_dies_while_it_samples_ahead_leaves_a_checkpoint_to_go_on_from_in_the_same_bits(train):
    undisturbed, _ = train(output="undisturbed", **AHEAD)
    settings = AHEAD | {"checkpoint_every": 0, "output": "died"}
    with pytest.raises(EngineError, match=r"checkpoint: .*iteration-000002"):
        train(on_iteration=lambda metrics, engine: metrics["iteration"] == 2 and engine.close(), **settings)
    resumed, (engine,) = train(resume=True, **settings)
    assert engine.published[0].name == "version-000001"  # by which the third batch was being sampled
    assert torch.equal(resumed.trained(), undisturbed.trained())
    assert resumed.log_without_times() == undisturbed.log_without_times()


def test_a_run_may_begin_and_end_to_sample_ahead_with_a_resume(train):
    steps = [0, 1, 0]
    for done, max_staleness in enumerate(steps):
        settings = AHEAD | {"max_staleness": max_staleness, "iterations": 2 * (done + 1)}
        run, _ = train(resume=done > 0, **settings)
    assert [line["sampler/staleness"] for line in run.log()] == [0, 0, 0, 1, 0, 0]


def test_an_evaluation_gives_the_engines_other_weights_once_the_batch_that_was_begun_is_there(train):
    """An evaluation is by the newest version, the batch that was begun by the one before."""
    undisturbed, _ = train(output="undisturbed", **AHEAD)
    run, (engine,) = train(eval_prompts=[Prompt(text="w9 w10")], eval_every=1, output="evaluated", **AHEAD)
    assert torch.equal(run.trained(), undisturbed.trained())
    assert [path.name for path in engine.published] == [f"version-00000{version}" for version in (0, 1, 2, 3, 4)]


def test_a_batch_sampled_in_turn_keeps_no_weights(train):
    run, _ = train(**AHEAD | {"max_staleness": 0})
    assert not list(run.output.glob("checkpoints/*/previous_policy"))
    ahead, _ = train(output="ahead", **AHEAD)
    kept = sorted(path.parent.name for path in ahead.output.glob("checkpoints/*/previous_policy"))
    assert kept == [f"iteration-00000{done}" for done in (1, 2, 3, 4)]


def test_the_guard_on_the_ratio_compares_with_the_version_that_sampled(train, make_policy):
    """A tight limit holds although the version that learns has other probabilities."""
    run, _ = train(**AHEAD, ratio_tolerance=2e-5, epochs=1)
    assert any(abs(line["val/ratio"] - 1) > 1e-4 for line in run.log()[1:])
    assert not torch.equal(weights(run.policy), weights(make_policy()))
