"""Evaluation on held-out prompts: what it shows, what it keeps, and that it changes nothing."""

import json
from pathlib import Path

import pytest
import torch
from fake_vllm import fake_engines
from tiny_trainer import KilledError, stop_after, weights
from transformers import AutoModelForCausalLM

from plaudit_client import Score
from plaudit_ppo import Prompt
from plaudit_ppo.errors import CheckpointError, ConfigError, MaskedShareError, OutputError
from plaudit_ppo.evaluation import _filled_up, evenly_spread
from plaudit_ppo.runs.metrics_server import Figures
from plaudit_ppo.runs.report import write_report
from plaudit_ppo.training.held_out import HELD_OUT_METRICS, as_tensor, metrics_of, win_rate

HELD_OUT = [Prompt(text="w9 w10"), Prompt(text="w11"), Prompt(text="w12 w13 w14", columns={"label": "x"})]
SETTINGS = {
    "iterations": 5,
    "eval_every": 2,
    "checkpoint_every": 2,
    "eval_prompts": HELD_OUT,
    "lr_schedule": "constant",
}


def scripted(means, seen=None):
    """A scorer that gives held-out prompts the same score all the n-th time, and training prompts 0 to 7."""
    asked = []

    def scorer(items):
        if items[0]["prompt"] not in {prompt.text for prompt in HELD_OUT}:
            return [Score("ok", float(number)) for number, _ in enumerate(items)]
        asked.append(items)
        if seen is not None:
            seen.append([item["completion"] for item in items])
        return [Score("ok", means[len(asked) - 1])] * len(items)

    return scorer


def checkpoints(run):
    return sorted(path.name for path in (run.output / "checkpoints").glob("iteration-*"))


def best(run):
    return (run.output / "checkpoints" / "best").readlink().name


def test_the_policy_is_evaluated_at_the_start_every_few_iterations_and_at_the_end(make_trainer, scorer):
    """Detail 38: with the scores of every prompt, by which the win rate can be computed again."""
    run = make_trainer(eval_scorer=lambda items: [Score("ok", 7.0)] * len(items), **SETTINGS)
    summary = run.train()
    lines = run.evaluations()
    assert [line["iteration"] for line in lines] == [0, 2, 4, 5]
    start = as_tensor(lines[0]["scores"])
    for line in lines:
        scores = as_tensor(line["scores"])
        assert len(scores) == 3
        assert line["heldout/scores"] == pytest.approx(float(scores.mean()))
        assert line["heldout/win_rate"] == win_rate(scores, start)
        assert (line["heldout/eval_scores"], line["heldout/masked_share"]) == (7.0, 0.0)
    assert (lines[0]["heldout/win_rate"], lines[0]["heldout/kl"]) == (0.5, pytest.approx(0.0, abs=1e-5))
    assert abs(lines[-1]["heldout/kl"]) > 1e-3
    assert [line["iteration"] for line in summary.held_out] == [0, 5]
    written = json.loads((run.output / "summary.json").read_text())["held_out"]
    assert [{"iteration", *HELD_OUT_METRICS} for _ in lines[:2]] == [set(line) for line in written]


@pytest.mark.parametrize("decoding", ["greedy", "sampled"])
def test_an_evaluation_changes_no_bit_of_the_training(make_trainer, scorer, decoding):
    """Details 22 and 38: neither weights nor log."""
    plain = make_trainer(output="plain", **SETTINGS | {"eval_prompts": ()})
    evaluated = make_trainer(eval_decoding=decoding, **SETTINGS)
    plain.train()
    evaluated.train()
    assert torch.equal(evaluated.trained(), plain.trained())
    assert evaluated.log_without_times() == plain.log_without_times()
    assert not (plain.output / "evaluations.jsonl").exists()
    assert checkpoints(plain) == ["iteration-000004", "iteration-000005"]


def test_held_out_completions_are_the_likeliest_tokens_or_drawn_by_the_same_numbers_each_time(make_trainer, policy):
    still = SETTINGS | {"iterations": 2, "eval_every": 1, "learning_rate": 1e-12}
    kept = {}
    for decoding in ("greedy", "sampled"):
        seen = []
        make_trainer(scripted([0.0] * 3, seen), output=decoding, eval_decoding=decoding, **still).train()
        assert seen[0] == seen[1] == seen[2]
        kept[decoding] = seen[0]
    assert kept["greedy"] != kept["sampled"]
    ids = torch.tensor([[9, 10]])
    for word in kept["greedy"][0].split():
        token = int(policy(ids).logits[0, -1].argmax())
        assert word == f"w{token}"
        ids = torch.cat([ids, torch.tensor([[token]])], dim=1)


def test_the_best_checkpoint_is_kept_beyond_the_newest_and_has_a_name(make_trainer):
    """Detail 38: it is written when it is found, also between two checkpoints."""
    after = {}
    run = make_trainer(
        scripted([9.0, 2.0, 3.0, 3.0, 1.0, 0.0]),
        **SETTINGS | {"iterations": 5, "eval_every": 1, "checkpoint_every": 5, "max_checkpoints": 1},
    )
    run.train(on_iteration=lambda metrics: after.update({metrics["iteration"]: weights(run.policy).clone()}))
    assert checkpoints(run) == ["iteration-000002", "iteration-000005"]
    assert best(run) == "iteration-000002"
    kept = AutoModelForCausalLM.from_pretrained(run.output / "checkpoints" / "best" / "policy")
    assert torch.equal(weights(kept), after[2])


def test_the_scorer_that_is_not_trained_on_decides_which_is_best(make_trainer):
    run = make_trainer(scripted([0.0, 1.0, 2.0, 3.0]), eval_scorer=scripted([0.0, 5.0, 6.0, 4.0]), **SETTINGS)
    run.train()
    assert best(run) == "iteration-000004"


@pytest.mark.parametrize("stops", [[2], [3], [1, 4]])
def test_a_run_that_is_killed_and_resumed_has_the_same_evaluations_and_the_same_best(
    make_trainer, make_policy, scorer, stops
):
    """Details 22 and 38: before and after an evaluation, a checkpoint and a best one."""
    settings = SETTINGS | {"eval_decoding": "sampled", "eval_every": 1, "checkpoint_every": 3}
    whole = make_trainer(output="whole", **settings)
    whole.train()
    for stop in stops:
        with pytest.raises(KilledError):
            make_trainer(**settings).train(on_iteration=stop_after(stop), resume=stop != stops[0])
    resumed = make_trainer(reference=make_policy(), **settings)
    resumed.train(resume=True)
    assert torch.equal(resumed.trained(), whole.trained())
    assert resumed.evaluations() == whole.evaluations()
    assert resumed.log_without_times() == whole.log_without_times()
    assert (best(resumed), checkpoints(resumed)) == (best(whole), checkpoints(whole))
    for file in ("policy/model.safetensors", "optimizer.safetensors", "state.json"):
        left = [(run.output / "checkpoints" / "best" / file).read_bytes() for run in (whole, resumed)]
        assert left[0] == left[1]


def test_a_run_that_was_killed_before_it_named_its_best_names_it_when_it_goes_on(make_trainer, make_policy):
    run = make_trainer(scripted([0.0, 2.0, 1.0, 0.0]), **SETTINGS)
    with pytest.raises(KilledError):
        run.train(on_iteration=stop_after(3))
    (run.output / "checkpoints" / "best").unlink()
    with pytest.raises(KilledError):
        make_trainer(scripted([1.0]), reference=make_policy(), **SETTINGS).train(
            resume=True, on_iteration=stop_after(3)
        )
    assert best(run) == "iteration-000002"


def test_a_file_system_without_links_is_noticed_at_the_start(make_trainer, monkeypatch):
    def fail(*_):
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "symlink_to", fail)
    run = make_trainer(**SETTINGS)
    with pytest.raises(OutputError, match=r"checkpoints/best: cannot be linked \(Operation not permitted\); choose"):
        run.train()
    assert run.log() == []


def test_evaluations_of_other_prompts_are_not_gone_on_with(make_trainer, make_policy):
    make_trainer(**SETTINGS | {"iterations": 2}).train()
    for changed in ({"eval_prompts": HELD_OUT[:2]}, {"eval_decoding": "sampled"}):
        with pytest.raises(
            CheckpointError, match=r"evaluations.jsonl: eval_prompts, .* have changed since the run began"
        ):
            make_trainer(reference=make_policy(), **SETTINGS | changed).train(resume=True)


def test_a_run_that_began_without_evaluations_has_no_win_rate(make_trainer, make_policy):
    make_trainer(**SETTINGS | {"iterations": 2, "eval_prompts": ()}).train()
    run = make_trainer(reference=make_policy(), **SETTINGS)
    run.train(resume=True)
    assert [(line["iteration"], line["heldout/win_rate"]) for line in run.evaluations()] == [
        (2, None),
        (4, None),
        (5, None),
    ]


def test_a_scorer_that_fails_on_held_out_prompts_stops_the_run_with_a_checkpoint(make_trainer, make_policy, tmp_path):
    def failing(items):
        raise ConnectionError("no route")

    with pytest.raises(MaskedShareError, match=r"100% of the rollouts .* no route.*; checkpoint: .*iteration-000000"):
        make_trainer(failing, **SETTINGS).train()
    with pytest.raises(KilledError):
        make_trainer(reference=make_policy(), **SETTINGS).train(resume=True, on_iteration=stop_after(1))
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["iteration-000000"]  # not the best


def test_held_out_prompts_have_the_limits_of_the_others_and_those_of_the_training_are_counted(make_trainer, caplog):
    long = [Prompt(text=" ".join(["w2"] * 60), where="held out line 7")]
    with pytest.raises(ConfigError, match="longest prompt has 60 tokens"):
        make_trainer(eval_prompts=long)
    make_trainer(eval_prompts=[*HELD_OUT, Prompt(text="w8")])
    assert "1 of 4 held-out prompts (eval_prompts) are also prompts of the training" in caplog.text


def test_of_many_held_out_prompts_some_are_used_evenly_spread(make_trainer):
    assert evenly_spread(3, 5) == [0, 1, 2]
    assert evenly_spread(10, 4) == [0, 2, 5, 7]
    run = make_trainer(**SETTINGS | {"iterations": 1}, max_eval_prompts=2)
    run.train()
    assert [len(line["scores"]) for line in run.evaluations()] == [2, 2]


def test_processes_have_as_many_held_out_prompts_each():
    assert _filled_up([4, 5, 6], 2) == [4, 5, 6, 4]
    assert _filled_up([4, 5], 5) == [4, 5, 4, 5, 4]
    assert _filled_up([4, 5], 2) == [4, 5]


def test_engines_complete_held_out_prompts_with_weights_that_they_are_given_once(make_trainer, policy, tokenizer):
    local, seen = [], []
    make_trainer(scripted([0.0] * 2, local), output="local", **SETTINGS | {"iterations": 1}).train()
    with fake_engines(policy, tokenizer) as (engine,):
        settings = SETTINGS | {"iterations": 1, "sampler": "vllm", "engine_urls": [engine.url]}
        make_trainer(scripted([0.0] * 2, seen), **settings).train()
        assert seen[0] == local[0]  # the likeliest tokens, whoever finds them
        assert [path.name for path in engine.published] == ["version-000000", "version-000001"]
        assert [body["temperature"] for _, path, body in engine.calls if path == "/v1/completions"].count(0.0) == 2 * 3


def test_the_model_card_has_the_first_and_the_last_evaluation(make_trainer, tmp_path):
    trainer = make_trainer(scorer=scripted([1.0, 4.0, 3.0, 2.5]), **SETTINGS)
    trainer.train()
    card = (tmp_path / "run" / "policy" / "README.md").read_text()
    assert "| mean over prompts that the policy was not trained on | iteration 0 | iteration 5 |" in card
    assert "| score of the reward model | 1 | 2.5 |" in card
    assert "| share of prompts won against the start policy | 0.5 | 1 |" in card
    assert "Completions are of the likeliest tokens." in card
    assert "None was made" not in card
    assert "| score of the evaluation scorer |" not in card  # there is none


def test_evaluations_are_in_the_report_and_in_prometheus(make_trainer):
    run = make_trainer(scripted([1.0, 2.0, 4.0, 3.0]), **SETTINGS)
    run.train()
    page = write_report(run.output).read_text()
    for text in ("<!-- heldout/win_rate -->", "<!-- heldout/scores -->", "1 → 3", "100%"):
        assert text in page
    assert "<!-- heldout/eval_scores -->" not in page
    lines = [json.loads(line) for line in (run.output / "evaluations.jsonl").read_text().splitlines()]
    figures = Figures()
    value = figures.registry.get_sample_value
    assert value("plaudit_ppo_heldout_scores") is None
    figures.add(run.log()[0])
    figures.add(metrics_of(lines[1]))
    figures.add(run.log()[1])
    assert (value("plaudit_ppo_heldout_scores"), value("plaudit_ppo_heldout_win_rate")) == (2.0, 1.0)
    assert value("plaudit_ppo_iteration") == 2
    assert value("plaudit_ppo_iteration_seconds_count") == 2
