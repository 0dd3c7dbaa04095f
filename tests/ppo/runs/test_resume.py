"""Checkpoints of the trainer: stopping, going on, and what they leave. With real processes: tests/e2e/test_ppo_*.py."""

import json

import pytest
import torch
from tiny_trainer import KilledError, stop_after, weights
from transformers import AutoModelForCausalLM, AutoTokenizer

from plaudit_client import Score, Scores
from plaudit_ppo import Prompt, TrunkCritic
from plaudit_ppo.errors import (
    CheckpointError,
    ConstantScoresError,
    DivergenceError,
    KLBudgetError,
    MaskedShareError,
    OutputError,
    RatioError,
    RewardModelError,
)
from plaudit_ppo.runs.log import read_log


def checkpoints(path):
    return sorted(entry.name for entry in (path / "checkpoints").iterdir())


SETTINGS = {
    "iterations": 7,
    "checkpoint_every": 2,
    "num_minibatches": 2,
    "sample_every": 3,
    "kl_controller": "adaptive",
}


@pytest.fixture
def undisturbed(make_trainer):
    """A run of the same settings that was never stopped."""
    undisturbed = make_trainer(output="whole", **SETTINGS)
    undisturbed.train()
    return undisturbed


@pytest.mark.parametrize("stops", [[1], [2], [3], [5, 6]])
def test_a_resumed_run_ends_in_the_bits_and_with_the_log_of_one_that_was_never_stopped(
    make_trainer, make_policy, undisturbed, stops
):
    """Before the first checkpoint, right at one, after one; and twice."""
    for stop in stops:
        with pytest.raises(KilledError):
            make_trainer(**SETTINGS).train(on_iteration=stop_after(stop), resume=stop != stops[0])
    resumed = make_trainer(reference=make_policy(), **SETTINGS)
    summary = resumed.train(resume=True)
    assert torch.equal(resumed.trained(), undisturbed.trained())
    assert resumed.log_without_times() == undisturbed.log_without_times()
    assert (resumed.output / "samples.jsonl").read_bytes() == (undisturbed.output / "samples.jsonl").read_bytes()
    assert (summary.iterations, summary.episodes) == (7, 56)


def test_a_run_with_the_critic_on_the_policys_network_is_resumed_in_the_same_bits(make_trainer, make_policy):
    """Detail 19: O19's variant."""

    def make(output, iterations):
        policy = make_policy()
        critic = TrunkCritic(policy, head_init="normal", generator=torch.Generator().manual_seed(0))
        parts = {"policy": policy, "critic": critic, "reference": make_policy()}
        return make_trainer(**parts, output=output, iterations=iterations, lr_schedule="constant")

    whole, first_half, resumed = make("whole", 4), make("run", 2), make("run", 4)
    whole.train()
    first_half.train()
    resumed.train(resume=True)
    assert torch.equal(whole.trained(), resumed.trained())
    assert [path.name for path in (resumed.output / "critic").iterdir()] == ["value_head.safetensors"]


def test_a_run_that_is_killed_while_its_critic_warms_up_is_resumed_in_the_same_bits(make_trainer, make_policy):
    """Detail 34: the policy's optimizer has no state yet."""
    settings = {"iterations": 4, "critic_warmup_iterations": 2, "checkpoint_every": 1}
    whole = make_trainer(output="whole", **settings)
    whole.train()
    with pytest.raises(KilledError):
        make_trainer(**settings).train(on_iteration=stop_after(1))
    resumed = make_trainer(reference=make_policy(), **settings)
    resumed.train(resume=True)
    assert torch.equal(resumed.trained(), whole.trained())
    assert resumed.log_without_times() == whole.log_without_times()


def test_checkpoints_are_bounded_in_number_and_the_last_one_is_of_the_end(make_trainer, tmp_path):
    make_trainer(**SETTINGS).train()
    assert checkpoints(tmp_path / "run") == ["iteration-000006", "iteration-000007"]
    make_trainer(output="few", iterations=3, checkpoint_every=0, max_checkpoints=5).train()
    assert checkpoints(tmp_path / "few") == ["iteration-000003"]


def test_a_finished_run_goes_on_when_it_is_given_more_iterations(make_trainer, tmp_path):
    make_trainer(iterations=2).train()
    assert make_trainer(iterations=4).train(resume=True).iterations == 4
    assert [line["iteration"] for line in read_log(tmp_path / "run" / "log.jsonl")] == [1, 2, 3, 4]


def test_a_checkpoint_is_a_normal_transformers_model_and_holds_no_pickle(make_trainer, tmp_path):
    make_trainer(iterations=2).train()
    run = tmp_path / "run"
    checkpoint = run / "checkpoints" / "iteration-000002"
    assert torch.equal(
        weights(AutoModelForCausalLM.from_pretrained(checkpoint / "policy")),
        weights(AutoModelForCausalLM.from_pretrained(run / "policy")),
    )
    assert AutoTokenizer.from_pretrained(checkpoint / "policy").eos_token == "<eos>"
    names = {path.suffix for path in run.rglob("*") if path.is_file()}
    assert names <= {".json", ".jsonl", ".lock", ".safetensors", ".toml", ".md"}


def test_other_prompts_and_other_models_are_refused(make_trainer, make_policy, tmp_path):
    make_trainer(iterations=1).train()
    with pytest.raises(CheckpointError, match="the prompts or the tokenizer have changed"):
        make_trainer(iterations=2, prompts=[Prompt(text="w9")]).train(resume=True)
    smaller = type(make_policy())(
        type(make_policy().config)(**make_policy().config.to_dict() | {"num_hidden_layers": 1})
    )
    with pytest.raises(CheckpointError, match="it belongs to other models than the given ones"):
        make_trainer(iterations=2, policy=smaller).train(resume=True)


def test_another_reward_model_than_before_the_resume_is_noticed(make_trainer, tmp_path):
    def scored_by(fingerprint):
        def scorer(items):
            results = tuple(Score("ok", float(number)) for number, _ in enumerate(items))
            return Scores(results, "rm", fingerprint, "engine")

        return scorer

    make_trainer(scored_by("sha256:one"), iterations=1).train()
    with pytest.raises(RewardModelError, match="fingerprint sha256:two, before sha256:one"):
        make_trainer(scored_by("sha256:two"), iterations=2).train(resume=True)
    assert make_trainer(scored_by("sha256:one"), iterations=2).train(resume=True).iterations == 2


def failing_from(iteration, results):
    """A scorer that gives good scores until an iteration, then others; 8 rollouts in 2 calls per iteration."""
    calls = []

    def scorer(items):
        calls.append(items)
        if len(calls) > 2 * (iteration - 1):
            return [results] * len(items)
        return [Score("ok", float(number)) for number, _ in enumerate(items)]

    return scorer


def broken_policy(policy, kind):
    """A policy whose training forward goes wrong from its third iteration on."""
    forwards = []

    def distort(module, args, kwargs, output):
        if not kwargs["use_cache"]:
            forwards.append(1)
            if kind == "gradient" and len(forwards) > 24 and output.logits.requires_grad:
                output.logits.register_hook(lambda gradient: gradient * float("nan"))
            if kind == "ratio" and len(forwards) > 24 and output.logits.requires_grad:
                output.logits = output.logits * 1.001
        return output

    policy.register_forward_hook(distort, with_kwargs=True)
    return policy


@pytest.mark.parametrize(
    ("error", "says", "scorer", "settings"),
    [
        (MaskedShareError, "look at the scorer", failing_from(3, Score("failed", None)), {}),
        (
            ConstantScoresError,
            "look at samples.jsonl",
            failing_from(2, Score("ok", 1.0)),
            {"max_constant_iterations": 2},
        ),
        (
            KLBudgetError,
            "look at eval/scores",
            None,
            {"kl_budget": 0.3, "lr_schedule": "constant", "learning_rate": 3e-3},
        ),
    ],
)
def test_a_guard_stops_the_run_with_a_checkpoint_of_the_iterations_start(
    make_trainer, tmp_path, error, says, scorer, settings
):
    trainer = make_trainer(*[scorer] if scorer else [], iterations=9, checkpoint_every=0, **settings)
    with pytest.raises(error) as caught:
        trainer.train()
    done = len(read_log(tmp_path / "run" / "log.jsonl"))
    assert done > 0
    checkpoint = tmp_path / "run" / "checkpoints" / f"iteration-{done:06d}"
    assert str(caught.value).endswith(f"; checkpoint: {checkpoint}")
    assert says in str(caught.value)
    assert json.loads((checkpoint / "state.json").read_text())["iteration"] == done
    assert AutoModelForCausalLM.from_pretrained(checkpoint / "policy")


def test_a_run_that_a_guard_stopped_ends_in_the_same_bits_once_its_cause_is_gone(
    make_trainer, make_policy, undisturbed, scorer
):
    """The scorer fails in the fourth iteration, between two checkpoints; on the resume it works again."""
    calls = []

    def sometimes(items):
        calls.append(items)
        return [Score("failed", None)] * len(items) if len(calls) > 6 else scorer(items)

    with pytest.raises(MaskedShareError, match="iteration-000003"):
        make_trainer(sometimes, **SETTINGS).train()
    resumed = make_trainer(reference=make_policy(), **SETTINGS)
    resumed.train(resume=True)
    assert torch.equal(resumed.trained(), undisturbed.trained())
    assert resumed.log_without_times() == undisturbed.log_without_times()


@pytest.mark.parametrize(
    ("kind", "error", "says"),
    [
        ("gradient", DivergenceError, "look in log.jsonl"),
        ("ratio", RatioError, "check that dropout is off"),
    ],
)
def test_a_broken_update_stops_the_run_with_a_checkpoint(make_trainer, make_policy, tmp_path, kind, error, says):
    policy = broken_policy(make_policy(), kind)
    with pytest.raises(error, match=says) as caught:
        make_trainer(policy=policy, iterations=9, sampling_tolerance=1.0, ratio_tolerance=1e-5).train()
    done = len(read_log(tmp_path / "run" / "log.jsonl"))
    checkpoint = tmp_path / "run" / "checkpoints" / f"iteration-{done:06d}"
    assert str(caught.value).endswith(f"; checkpoint: {checkpoint}")
    assert weights(AutoModelForCausalLM.from_pretrained(checkpoint / "policy")).isfinite().all()


def nan_from(policy, forwards):
    """A policy whose generating forward gives NaN after so many passes."""
    passes = []

    def distort(module, args, kwargs, output):
        if kwargs["use_cache"]:
            passes.append(1)
            if len(passes) > forwards:
                output.logits = output.logits * float("nan")
        return output

    policy.register_forward_hook(distort, with_kwargs=True)
    return policy


def test_a_policy_that_gives_nan_stops_the_run_and_costs_no_checkpoint(make_trainer, make_policy, tmp_path):
    """In the third iteration, of two micro-batches of up to 6 tokens each."""
    policy = nan_from(make_policy(), 2 * 2 * 6)
    with pytest.raises(DivergenceError, match="the policy's probabilities are not finite, so nothing can be") as caught:
        make_trainer(policy=policy, iterations=9, checkpoint_every=1, max_checkpoints=1).train()
    done = len(read_log(tmp_path / "run" / "log.jsonl"))
    assert done >= 2
    assert str(caught.value).endswith(f"; checkpoint: {tmp_path}/run/checkpoints/iteration-{done:06d}")
    assert checkpoints(tmp_path / "run") == [f"iteration-{done:06d}"]


def test_weights_of_nan_stop_the_run_before_its_first_step_and_remove_no_former_checkpoint(
    make_trainer, make_policy, tmp_path
):
    make_trainer(iterations=2, checkpoint_every=1, max_checkpoints=1).train()
    policy = make_policy()

    def spoil(metrics):
        with torch.no_grad():
            policy.lm_head.weight.fill_(float("nan"))

    trainer = make_trainer(policy=policy, iterations=9, checkpoint_every=0, max_checkpoints=1)
    with pytest.raises(DivergenceError, match="If the newest checkpoint has NaN too, delete it"):
        trainer.train(on_iteration=spoil, resume=True)
    assert checkpoints(tmp_path / "run") == ["iteration-000002", "iteration-000003"]
    assert len(read_log(tmp_path / "run" / "log.jsonl")) == 3


def test_a_guard_that_can_leave_no_checkpoint_still_says_what_it_found(
    make_trainer, make_policy, tokenizer, monkeypatch
):
    trainer = make_trainer(failing_from(1, Score("failed", None)))
    original = type(tokenizer).save_pretrained
    monkeypatch.setattr(type(tokenizer), "save_pretrained", fail_after(1, original))
    with pytest.raises(MaskedShareError, match=r"got no score, .*; no checkpoint could be written \(.* No space left"):
        trainer.train()


def fail_after(count, original):
    """A method that works so many times; then the disk is full."""
    calls = []

    def method(self, *args, **kwargs):
        calls.append(1)
        if len(calls) > count:
            raise OSError(28, "No space left on device")
        return original(self, *args, **kwargs)

    return method


class SavingError(Exception):
    """What writes a model has exception types of its own."""


@pytest.mark.parametrize("part", ["policy", "critic", "tokenizer"])
def test_a_run_that_could_leave_nothing_does_not_begin(
    make_trainer, make_policy, make_critic, tokenizer, tmp_path, part
):
    """What can only fail at the end is tried at the start; the directory holds no run then."""

    def fail(*args, **kwargs):
        raise SavingError("cannot be saved\nand more")

    asked = []
    parts = {"policy": make_policy(), "critic": make_critic(), "tokenizer": tokenizer}
    save = parts[part].save_pretrained
    parts[part].save_pretrained = fail
    with pytest.raises(
        CheckpointError,
        match=r"the results of the run could not be written at its end, .* \(SavingError: cannot be saved\)",
    ) as got:
        make_trainer(asked.append, reference=make_policy(), **parts).train()
    assert "\n" not in str(got.value)
    assert asked == []
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"config.toml", "run.lock"}
    parts[part].save_pretrained = save
    make_trainer(reference=make_policy(), **parts).train()  # once it is mended, the same directory will do


def test_a_result_that_cannot_be_written_is_named_and_written_by_a_resume(
    make_trainer, make_critic, tmp_path, monkeypatch
):
    """The disk fills up while the run goes on; its checkpoint is there."""
    critic = make_critic()
    monkeypatch.setattr(type(critic), "save_pretrained", fail_after(2, type(critic).save_pretrained))
    with pytest.raises(
        OutputError, match=r"run/critic: cannot be written \(.*No space left on device\); resume the run"
    ):
        make_trainer(critic=critic, iterations=1).train()
    monkeypatch.undo()
    assert make_trainer(iterations=1).train(resume=True).iterations == 1
    assert (tmp_path / "run" / "critic" / "model.safetensors").exists()


def test_sampling_settings_without_do_sample_are_written_back(make_trainer, make_policy, tmp_path):
    """transformers 4.57 reads them from published checkpoints, and refuses to write them."""
    make_policy().save_pretrained(tmp_path / "policy")
    settings = {"temperature": 0.6, "top_p": 0.9, "eos_token_id": 0}
    (tmp_path / "policy" / "generation_config.json").write_text(json.dumps(settings))
    policy = AutoModelForCausalLM.from_pretrained(tmp_path / "policy")
    make_trainer(policy=policy, iterations=1).train()
    left = json.loads((tmp_path / "run" / "policy" / "generation_config.json").read_text())
    assert {name: left[name] for name in settings} == settings


def test_the_model_card_and_the_summary_have_the_figures_of_the_run(make_trainer, tmp_path):
    summary = make_trainer(iterations=3, kl_coef=0.125).train()
    run = tmp_path / "run"
    log = read_log(run / "log.jsonl")
    written = json.loads((run / "summary.json").read_text())
    assert written["final"] == log[-1]
    assert written["iterations"] == summary.iterations == 3
    assert written["call_s"] == pytest.approx(sum(line["scoring/call_s"] for line in log))
    assert written["exposed_wait_share"] == pytest.approx(
        sum(line["scoring/exposed_wait_s"] for line in log) / sum(line["time/iteration_s"] for line in log)
    )
    card = (run / "policy" / "README.md").read_text()
    first, last = log[0]["scoring/score_mean"], log[-1]["scoring/score_mean"]
    assert f"| score of the reward model | {first:.4g} | {last:.4g} |" in card
    assert f"| KL from the start, nats per completion | {log[0]['objective/kl']:.4g} |" in card
    assert "3 iterations, 24 rollouts" in card
    assert "kl_coef = 0.125" in card
    assert str(tmp_path) not in card  # no path of the machine
    assert "## Held-out evaluation\n\nNone was made: the run had no `eval_prompts`." in card
    assert "none |" not in card  # figures that the run does not have are left out
