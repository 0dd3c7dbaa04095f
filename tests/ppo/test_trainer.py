import json
import math
import threading
from collections import Counter
from itertools import pairwise

import pytest
import torch
from tiny_trainer import weights
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from plaudit_client import Along, Score
from plaudit_ppo import PPOConfig, Prompt, load_config, load_policy
from plaudit_ppo.algorithm.kl import next_kl_coef
from plaudit_ppo.errors import ConfigError, MaskedShareError, PromptError, RatioError
from plaudit_ppo.rollout.prompts import dealt_prompts, mixed_prompts
from plaudit_ppo.training.metrics import METRICS

# What details 25 and 26 of docs/ppo-details.md name.
METRICS_OF_THE_FIELD = """
    objective/kl objective/kl_coef objective/entropy objective/non_score_reward objective/scores objective/rlhf_reward
    policy/approxkl_avg policy/clipfrac_avg policy/entropy_avg loss/policy_avg loss/value_avg
    val/clipfrac_avg val/ratio val/ratio_var val/num_eos_tokens val/explained_variance lr episode
"""
METRICS_OF_SCORING = """
    tokens/completion_mean tokens/completion_p95 val/eos_share
    scoring/score_std scoring/exposed_wait_s scoring/call_s scoring/masked_share scoring/retries
"""


def failing(share):
    """A scorer without a score for a share of all items, evenly spread."""
    lock, count = threading.Lock(), 0

    def scorer(items):
        nonlocal count
        results = []
        for _ in items:
            with lock:
                count += 1
                fails = math.floor(count * share) > math.floor((count - 1) * share)
            results.append(Score("failed", None, detail="no memory") if fails else Score("ok", 1.0))
        return results

    return scorer


def test_ppo_raises_a_simple_reward(make_trainer):
    """The whole loop: the share of one word in the completions goes from a few percent to most of them."""
    trainer = make_trainer(
        iterations=25,
        rollout_batch_size=32,
        rollout_micro_batch_size=16,
        max_completion_tokens=8,
        learning_rate=3e-3,
        lr_schedule="constant",
        missing_eos="off",
        kl_coef=0.01,
    )
    summary = trainer.train()
    scores = [line["objective/scores"] for line in trainer.log()]
    assert sum(scores[:3]) / 3 < 0.15
    assert sum(scores[-3:]) / 3 > 0.6
    assert summary.final["objective/kl"] > 1.0
    assert (summary.iterations, summary.episodes, summary.masked_share) == (25, 800, 0.0)
    assert 0 <= summary.exposed_wait_share < 1


def test_two_runs_with_one_seed_end_in_the_same_bits(make_trainer):
    """Detail 22: all randomness comes from the seed, and torch's own state is not touched."""
    runs = {}
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        torch.manual_seed(hash(name) % 1000)
        runs[name] = make_trainer(output=name, seed=seed, num_minibatches=2)
        runs[name].train()
    assert torch.equal(runs["a"].trained(), runs["b"].trained())
    assert runs["a"].log_without_times() == runs["b"].log_without_times()
    assert not torch.equal(runs["a"].trained(), runs["c"].trained())


def test_every_metric_is_logged_under_its_name(make_trainer, scorer):
    """Details 25 and 26, and ours: time/*, tokens/*."""
    seen = []
    trainer = make_trainer(eval_scorer=scorer)
    trainer.train(on_iteration=seen.append)
    lines = trainer.log()
    assert lines == seen
    for line in lines:
        assert set(line) == set(METRICS)
    assert METRICS.keys() >= set((METRICS_OF_THE_FIELD + METRICS_OF_SCORING).split())
    assert [line["episode"] for line in lines] == [8, 16]
    assert [line["lr"] for line in lines] == [1e-3, 5e-4]


def test_before_the_first_update_the_policy_is_the_reference(make_trainer):
    """Details 4, 11 and 25: KL 0 in the first iteration, at any temperature, and not in the second."""
    trainer = make_trainer(lr_schedule="constant", temperature=0.7)
    trainer.train()
    first, second = trainer.log()
    assert first["objective/kl"] == pytest.approx(0.0, abs=1e-5)
    assert first["val/sampling_ratio_error"] < 1e-4
    assert abs(second["objective/kl"]) > 1e-3


def test_policy_and_critic_are_trained_and_the_reference_is_not(make_trainer, make_policy, make_critic):
    """Detail 19: a separate critic."""
    trainer = make_trainer(reference=make_policy())
    trainer.train()
    assert not torch.equal(weights(trainer.policy), weights(make_policy()))
    assert not torch.equal(weights(trainer.critic), weights(make_critic()))
    assert torch.equal(weights(trainer.reference), weights(make_policy()))


def test_what_is_left_is_what_transformers_reads(make_trainer):
    trainer = make_trainer(kl_coef=0.2)
    trainer.train()
    run = trainer.output
    assert torch.equal(weights(AutoModelForCausalLM.from_pretrained(run / "policy")), weights(trainer.policy))
    assert AutoTokenizer.from_pretrained(run / "policy").eos_token == "<eos>"
    assert AutoModelForSequenceClassification.from_pretrained(run / "critic").num_labels == 1
    assert load_config(run / "config.toml").kl_coef == 0.2
    assert load_policy(run / "policy")
    assert not list(run.rglob("*.bin"))


def test_the_scorer_gets_the_kept_text_and_whether_it_ended(make_trainer, prompts):
    """Details 3 and 6: text through the EOS, which is named only on demand."""
    texts = {prompt.text for prompt in prompts}
    for send_eos_text in (False, True):
        items = []

        def scorer(batch, items=items):
            items.extend(batch)
            return [Score("ok", 0.0)] * len(batch)

        make_trainer(scorer, output=f"eos-{send_eos_text}", iterations=1, send_eos_text=send_eos_text).train()
        assert len(items) == 8
        assert all(item["prompt"] in texts for item in items)
        assert {item["finished"] for item in items} == {True, False}
        for item in items:
            assert item["completion"].endswith("<eos>") == (send_eos_text and item["finished"])


@pytest.mark.parametrize("send_eos_text", [False, True])
def test_every_eos_of_the_generation_config_ends_a_completion(make_trainer, make_policy, send_eos_text):
    """Detail 3: the turn ends at any of them, and the one that was sampled belongs to it."""
    policy, items = make_policy(), []
    policy.generation_config.eos_token_id = [0, 5, 6]

    def scorer(batch):
        items.extend(batch)
        return [Score("ok", 1.0)] * len(batch)

    run = make_trainer(scorer, policy=policy, iterations=1, rollout_batch_size=64, send_eos_text=send_eos_text)
    run.train()
    for item in items:
        words = item["completion"].split()
        kept = words[:-1] if send_eos_text and item["finished"] else words
        assert not {"<eos>", "w5", "w6"} & set(kept)
        assert item["finished"] or len(words) == 6
    if send_eos_text:
        assert {item["completion"].split()[-1] for item in items if item["finished"]} == {"<eos>", "w5", "w6"}
    (line,) = run.log()
    assert line["val/num_eos_tokens"] == sum(item["finished"] for item in items) > 10
    share = line["val/eos_share"]
    assert line["objective/scores"] == pytest.approx(share * 1.0 + (1 - share) * -1.0)  # no rule hits what has ended


def test_a_chat_goes_to_the_scorer_as_messages(make_trainer, tokenizer):
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }} {% endfor %}"
    chat = Prompt(messages=({"role": "user", "content": "w4 w5"},), where="chats line 1")
    items = []

    def scorer(batch):
        items.extend(batch)
        return [Score("ok", 0.0)] * len(batch)

    make_trainer(
        scorer, tokenizer=tokenizer, prompts=[chat], iterations=1, send_eos_text=True, rollout_batch_size=32
    ).train()
    assert len(items) == 32
    assert all(item["messages"] == [{"role": "user", "content": "w4 w5"}] for item in items)
    assert all(len(item["completions"]) == 1 for item in items)
    assert any(item["finished"] for item in items)
    assert not any("<eos>" in item["completions"][0] for item in items)  # the template ends the turn


def test_scores_are_awaited_only_after_the_reference_and_the_critic(make_trainer, make_policy, make_critic):
    """The scorer answers only once both have run, which would never be if they waited for it."""
    reference, critic = make_policy(), make_critic()
    done = {reference: threading.Event(), critic: threading.Event()}
    for model, event in done.items():
        model.register_forward_hook(lambda *_, event=event: event.set())

    def scorer(items):
        in_time = all(event.wait(10) for event in done.values())
        return [Score("ok" if in_time else "expired", 1.0) for _ in items]

    summary = make_trainer(scorer, reference=reference, critic=critic, iterations=1).train()
    assert summary.masked_share == 0.0


def test_every_iteration_draws_random_numbers_of_its_own(make_trainer):
    items = []

    def scorer(batch):
        items.extend(batch)
        return [Score("ok", 1.0)] * len(batch)

    make_trainer(scorer, scorer_concurrency=1, rollout_batch_size=3, learning_rate=1e-12).train()
    first, second = items[:3], items[3:]
    assert {item["prompt"] for item in first} == {item["prompt"] for item in second}  # all three, dealt once each
    assert {item["completion"] for item in first}.isdisjoint(item["completion"] for item in second)


def test_several_completions_of_a_prompt_are_sampled_apart_and_scored_as_a_group(make_trainer, scorer, prompts):
    """Detail 35: rollouts are prompts times samples; log and samples show the group."""
    calls = []

    def group_scorer(items):
        calls.append(items)
        return [s for item in items for s in scorer([{"completion": text} for text in item["completions"]])]

    run = make_trainer(
        group_scorer, eval_scorer=group_scorer, iterations=3, rollout_batch_size=12, samples_per_prompt=2,
        rollout_micro_batch_size=4, num_samples=4, sample_every=1, learning_rate=1e-12,
    )  # fmt: skip
    run.train()
    assert len(calls) == 2 * 3 * 3  # two scorers, three micro-batches in each of three iterations
    for items in calls:
        assert sum(len(item["completions"]) for item in items) == 4
        for prompt in {item["prompt"] for item in items}:  # whole groups
            assert sum(len(item["completions"]) for item in items if item["prompt"] == prompt) in (2, 4)
    log, samples = run.log(), [json.loads(line) for line in (run.output / "samples.jsonl").read_text().splitlines()]
    assert [line["episode"] for line in log] == [12, 24, 36]
    assert all(line["scoring/group_std"] > 0 for line in log)
    assert [row["sample"] for row in samples] == [0, 1, 0, 1] * 3
    groups = list(zip(samples[::2], samples[1::2], strict=True))
    for first, second in groups:
        assert first["prompt"] == second["prompt"]
        assert first["score"] == pytest.approx(scorer([first])[0].score)
    assert any(first["completion"] != second["completion"] for first, second in groups)
    dealt = [row["prompt"] for row in samples[::2]]
    assert dealt == [dealt_prompts(3, start=6 * at, count=6, seed=0)[each] for at in range(3) for each in range(2)]


def test_what_else_a_prompts_row_holds_goes_to_scorers_and_into_the_samples(make_trainer, scorer):
    """Detail 37: to a scorer that takes it; the evaluation scorer, too."""
    prompts = [Prompt(text="w2 w3", columns={"label": "a" * 3000, "n": 1}), Prompt(text="w4", columns={"label": "b"})]
    seen = []

    def knowing(items, extra=()):
        seen.extend((item["prompt"], columns["label"]) for item, columns in zip(items, extra, strict=True))
        return scorer(items)

    run = make_trainer(knowing, eval_scorer=knowing, prompts=prompts, iterations=1, sample_every=1)
    run.train()
    assert len(seen) == 2 * 8
    assert set(seen) == {("w2 w3", "a" * 3000), ("w4", "b")}
    rows = [json.loads(line) for line in (run.output / "samples.jsonl").read_text().splitlines()]
    assert {row["prompt_text"]: row["columns"] for row in rows} == {
        "w2 w3": {"label": "a" * 2000, "n": 1},
        "w4": {"label": "b"},
    }
    plain = make_trainer(output="plain", iterations=1)
    plain.train()
    assert "columns" not in json.loads((plain.output / "samples.jsonl").read_text().splitlines()[0])


def test_prompts_of_weighted_sources_are_dealt_in_their_shares_and_then_repeated_for_groups(make_trainer):
    """Detail 37."""
    prompts = [Prompt(text="w2"), Prompt(text="w3"), Prompt(text="w4", source=1)]
    asked = []

    def scorer(items):
        asked.extend((item["prompt"], len(item["completions"])) for item in items)
        return [Score("ok", float(row)) for row, _ in enumerate(text for item in items for text in item["completions"])]

    settings = {"prompts": prompts, "scorer_concurrency": 1, "max_completion_tokens": 1, "missing_eos": "off"}
    make_trainer(scorer, prompt_weights=[1.0, 2.0], rollout_batch_size=6, rollout_micro_batch_size=6,
                 samples_per_prompt=2, **settings).train()  # fmt: skip
    dealt = mixed_prompts([2, 1], [1.0, 2.0], start=0, count=6, seed=0)
    counted = Counter(prompts[index].text for index in dealt)
    assert counted["w4"] == 4
    assert {text: sum(size for name, size in asked if name == text) for text in counted} == {
        text: 2 * count for text, count in counted.items()
    }
    with pytest.raises(PromptError, match=r"prompts\[1\]: all prompts of this source were left out as too long"):
        make_trainer(prompts=prompts[:2], prompt_weights=[1.0, 2.0])


def test_long_prompts_are_left_out_on_demand_and_counted(make_trainer, caplog):
    prompts = [Prompt(text="w2 w3"), Prompt(text="w2 w3 w4 w5", where="rows line 2")]
    seen = []

    def scorer(items):
        seen.extend(item["prompt"] for item in items)
        return [Score("ok", 1.0)] * len(items)

    make_trainer(scorer, prompts=prompts, max_prompt_tokens=3, long_prompts="drop", iterations=1).train()
    assert set(seen) == {"w2 w3"}
    assert (
        "1 of 2 prompts have more than 3 tokens (max_prompt_tokens) and are left out, the first: rows line 2"
        in caplog.text
    )


def test_stop_strings_end_completions_and_the_scorer_gets_them_without(make_trainer):
    """Detail 36."""
    items = []

    def scorer(batch):
        items.extend(batch)
        return [Score("ok", 1.0)] * len(batch)

    run = make_trainer(
        scorer, stop=[" w5", " w6"], iterations=1, rollout_batch_size=64, max_completion_tokens=12, send_eos_text=True
    )
    run.train()
    assert not any(stop in item["completion"] for item in items for stop in (" w5", " w6"))
    finished = [item for item in items if item["finished"]]
    assert 0 < sum(item["completion"].endswith("<eos>") for item in finished) < len(finished)
    assert run.log()[0]["val/num_eos_tokens"] == len(finished)
    assert load_config(run.output / "config.toml").stop == (" w5", " w6")


def test_a_run_with_groups_is_resumed_in_the_same_bits(make_trainer, make_policy, scorer):
    """Details 22 and 35."""

    def group_scorer(items):
        return [s for item in items for s in scorer([{"completion": text} for text in item["completions"]])]

    settings = {"samples_per_prompt": 4, "rollout_batch_size": 16, "checkpoint_every": 1, "lr_schedule": "constant"}
    whole = make_trainer(group_scorer, output="whole", iterations=3, **settings)
    whole.train()
    make_trainer(group_scorer, iterations=1, **settings).train()
    resumed = make_trainer(group_scorer, reference=make_policy(), iterations=3, **settings)
    resumed.train(resume=True)
    assert torch.equal(resumed.trained(), whole.trained())
    assert resumed.log_without_times() == whole.log_without_times()


def test_every_micro_batch_is_sent_for_on_its_own(make_trainer):
    sizes = []

    def scorer(items):
        sizes.append(len(items))
        return [Score("ok", 1.0)] * len(items)

    make_trainer(scorer, iterations=1, rollout_batch_size=8, rollout_micro_batch_size=3).train()
    assert sorted(sizes) == [2, 3, 3]


def test_failed_rollouts_are_masked_and_their_share_is_logged(make_trainer):
    """Detail 10."""
    trainer = make_trainer(failing(0.25), max_masked_share=0.25)
    summary = trainer.train()
    assert [line["scoring/masked_share"] for line in trainer.log()] == [0.25, 0.25]
    assert [line["scoring/score_mean"] for line in trainer.log()] == [1.0, 1.0]
    assert summary.masked_share == 0.25


def test_a_step_without_a_single_score_is_skipped(make_trainer, make_policy):
    """Detail 10: all masked."""
    trainer = make_trainer(failing(1.0), max_masked_share=1.0)
    trainer.train()
    assert torch.equal(weights(trainer.policy), weights(make_policy()))
    for line in trainer.log():
        assert line["scoring/masked_share"] == 1.0
        assert line["objective/scores"] is None
        assert "loss/policy_avg" not in line


def test_too_many_failures_stop_the_run_with_a_reason_and_a_saved_policy(make_trainer):
    """Detail 10: above the limit."""
    trainer = make_trainer(failing(0.5), max_masked_share=0.25)
    with pytest.raises(MaskedShareError) as caught:
        trainer.train()
    assert "50% of the rollouts got no score, limit 25% (max_masked_share)" in str(caught.value)
    assert "first failure: failed (no memory)" in str(caught.value)
    saved = AutoModelForCausalLM.from_pretrained(trainer.output / "checkpoints" / "iteration-000000" / "policy")
    assert torch.equal(weights(saved), weights(trainer.policy))


def test_an_evaluation_scorer_is_logged_and_never_trained_on(make_trainer):
    """Detail 27."""
    evaluated = make_trainer(eval_scorer=lambda items: [Score("ok", 7.0)] * len(items), output="evaluated")
    plain = make_trainer(output="plain")
    evaluated.train()
    plain.train()
    assert torch.equal(weights(evaluated.policy), weights(plain.policy))
    assert [line["eval/scores"] for line in evaluated.log()] == [7.0, 7.0]
    assert "eval/scores" not in plain.log()[0]


def test_a_failing_evaluation_scorer_masks_no_rollout(make_trainer):
    trainer = make_trainer(eval_scorer=failing(1.0))
    trainer.train()
    assert trainer.log()[0]["eval/scores"] is None
    assert trainer.log()[0]["scoring/masked_share"] == 0.0


def test_beta_follows_the_kl_only_where_it_is_adaptive(make_trainer):
    """Detail 13: after the step, by what the last iteration's KL was."""
    settings = {"iterations": 3, "kl_coef": 0.2, "kl_target": 0.5, "kl_horizon": 100, "lr_schedule": "constant"}
    adaptive = make_trainer(output="adaptive", kl_controller="adaptive", **settings)
    adaptive.train()
    lines = adaptive.log()
    assert lines[0]["objective/kl_coef"] == 0.2
    for before, after in pairwise(lines):
        expected = next_kl_coef(
            before["objective/kl_coef"], before["objective/kl"], target=0.5, horizon=100, num_rollouts=8
        )
        assert after["objective/kl_coef"] == pytest.approx(expected)
        assert after["objective/kl_coef"] != before["objective/kl_coef"]
        assert after["objective/non_score_reward"] == pytest.approx(-after["objective/kl_coef"] * after["objective/kl"])
    fixed = make_trainer(output="fixed", **settings)
    fixed.train()
    assert {line["objective/kl_coef"] for line in fixed.log()} == {0.2}


def test_the_waits_for_both_scorers_and_the_retries_are_logged(make_trainer):
    """Detail 26: retries are what a scorer with such an attribute counts; without one they are null."""

    class Retrying:
        retries = 5

        def __call__(self, items):
            self.retries += 1
            return [Score("ok", float(number)) for number, _ in enumerate(items)]

    counted, uncounted = make_trainer(Retrying(), output="counted"), make_trainer(output="uncounted")
    assert counted.train().retries == 4
    assert [line["scoring/retries"] for line in counted.log()] == [2, 2]  # one per micro-batch
    assert uncounted.train().retries is None
    assert uncounted.log()[0]["scoring/retries"] is None


def test_samples_are_kept_every_few_iterations_and_of_the_last(make_trainer, scorer, tmp_path):
    """Detail 26: the sample table."""
    make_trainer(iterations=6, sample_every=4, num_samples=3).train()
    rows = [json.loads(line) for line in (tmp_path / "run" / "samples.jsonl").read_text().splitlines()]
    assert [row["iteration"] for row in rows] == [1, 1, 1, 5, 5, 5, 6, 6, 6]
    assert all(set(row) >= {"prompt", "completion", "score", "kl"} for row in rows)
    for row in rows:
        assert row["score"] == pytest.approx(scorer([row])[0].score)


def test_a_generating_forward_that_is_another_model_stops_the_run(make_trainer, make_policy):
    """Detail 23: an engine mismatch between sampling and training."""
    policy = make_policy()

    def distort(module, args, kwargs, output):
        if kwargs["use_cache"]:  # the generating forward alone
            output.logits = output.logits * 1.3
        return output

    policy.register_forward_hook(distort, with_kwargs=True)
    with pytest.raises(RatioError, match=r"limit 1\.00e-02 \(sampling_tolerance\)"):
        make_trainer(policy=policy).train()


@pytest.mark.parametrize("correction", ["token_truncate", "sequence_mask"])
def test_a_sampler_whose_numbers_differ_is_trained_with_under_a_correction(make_trainer, make_policy, correction):
    """Detail 29: the tight limit is not judged, the figures are logged, and what is too far apart stops the run."""

    def distorted(factor):
        policy = make_policy()

        def distort(module, args, kwargs, output):
            if kwargs["use_cache"]:  # the generating forward alone
                output.logits = output.logits * factor
            return output

        policy.register_forward_hook(distort, with_kwargs=True)
        return policy

    run = make_trainer(policy=distorted(1.1), output="near", sampling_correction=correction)
    run.train()
    for line in run.log():
        assert line["val/sampling_ratio_error"] > 0.01
        assert 0 < line["val/sampling_kl"] < 0.05
        assert 0 < line["val/sampling_log_ratio_max"] < 5
        assert line["val/sampling_weight_avg"] != 1
    far = make_trainer(policy=distorted(3.0), output="far", sampling_correction=correction)
    with pytest.raises(
        RatioError, match=r"limit 0\.05 \(max_sampling_kl\); check that the sampler has the current weights"
    ):
        far.train()


def test_while_the_critic_warms_up_the_policy_and_beta_stay_and_then_both_are_trained(make_trainer, make_policy):
    """Detail 34."""
    policies = []
    run = make_trainer(
        iterations=4, critic_warmup_iterations=2, lr_schedule="constant", kl_controller="adaptive", kl_horizon=100
    )
    critics = [weights(run.critic).clone()]

    def note(metrics):
        policies.append(weights(run.policy).clone())
        critics.append(weights(run.critic).clone())

    run.trainer.train(on_iteration=note)
    log = run.log()
    assert [line["lr"] for line in log] == [0.0, 0.0, 1e-3, 1e-3]
    assert torch.equal(policies[1], weights(make_policy()))
    assert not torch.equal(policies[2], policies[1])
    assert all(not torch.equal(one, other) for one, other in pairwise(critics))
    assert [line["objective/kl_coef"] for line in log[:3]] == [0.05] * 3
    assert log[2]["objective/kl"] == pytest.approx(0.0, abs=1e-5)
    assert abs(log[3]["objective/kl"]) > 1e-3


def test_dropout_of_a_given_model_is_turned_off(make_trainer, make_policy, make_critic):
    """Detail 5: in policy, reference and critic."""
    parts = {"policy": make_policy().train(), "reference": make_policy().train(), "critic": make_critic().train()}
    make_trainer(**parts, iterations=1).train()
    assert not any(module.training for model in parts.values() for module in model.modules())


def test_a_tokenizer_whose_pad_is_eos_trains_on_the_eos(make_trainer, make_tokenizer):
    """Detail 2: every EOS is a real token, and the saved tokenizer is the one given."""
    tokenizer = make_tokenizer(eos_token="<eos>", pad_token="<eos>")
    trainer = make_trainer(tokenizer=tokenizer)
    trainer.train()
    assert trainer.log()[0]["val/num_eos_tokens"] > 0
    assert AutoTokenizer.from_pretrained(trainer.output / "policy").pad_token == "<eos>"
    with pytest.raises(ConfigError, match="pad == EOS"):
        make_trainer(tokenizer=tokenizer, missing_pad="refuse")


def test_a_directory_that_holds_a_run_is_not_overwritten(make_trainer):
    make_trainer(iterations=1).train()
    with pytest.raises(ConfigError, match=r"already holds a run \(log\.jsonl\)"):
        make_trainer(iterations=1).train()


def test_an_output_that_cannot_be_written_is_refused(make_trainer, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"output: .*file.run cannot be written \(Not a directory\)"):
        make_trainer(output=str(tmp_path / "file" / "run")).train()


def test_prompts_that_do_not_fit_are_refused_before_training(make_trainer):
    with pytest.raises(PromptError, match="here: 4 tokens, limit 1 to 3"):
        make_trainer(prompts=[Prompt(text="w2 w3 w4 w5", where="here")], max_prompt_tokens=3)
    with pytest.raises(ConfigError, match=r"longest prompt has 4 tokens .* is 61.* 64 positions"):
        make_trainer(max_completion_tokens=61)


def test_the_defaults_are_those_of_the_sources():
    """Details 4, 9, 10, 12, 13, 14, 15, 18, 20, 21 and 24."""
    config = PPOConfig()
    assert (config.kl_controller, config.kl_target, config.kl_horizon) == ("fixed", 6.0, 10_000)
    assert (config.kl_estimator, config.kl_loss_coef, config.kl_budget) == ("k1", 0.0, None)
    assert (config.whiten_rewards, config.score_clip) == (False, None)
    assert (config.temperature, config.missing_eos, config.missing_eos_score) == (0.7, "replace", -1.0)
    assert (config.kl_coef, config.gamma, config.gae_lambda) == (0.05, 1.0, 0.95)
    assert (config.clip_range, config.value_clip_range, config.value_coef, config.epochs) == (0.2, 0.2, 0.1, 4)
    assert (config.learning_rate, config.lr_schedule, config.adam_epsilon) == (3e-6, "linear", 1e-5)


def score_of_steps(items):
    """A scorer of steps: the share of the word w3 in each; of the first step of a few completions none."""
    results = []
    for item in items:
        shares = [step.split().count("w3") / max(1, len(step.split())) for step in item["steps"]]
        numbers = range("w9" in item["steps"][0], len(shares))
        along = Along(
            tokens=tuple(numbers), scores=tuple(shares[at] for at in numbers), trained=True, steps=tuple(numbers)
        )
        results.append(Score("ok", shares[-1], along=along))
    return results


def test_steps_are_rewarded_where_they_end_and_a_rollout_with_a_step_without_a_score_is_masked(make_trainer):
    seen = []

    def scorer(items):
        seen.extend(items)
        return score_of_steps(items)

    trainer = make_trainer(
        scorer,
        eval_scorer=lambda items: [Score("ok", float(len(each))) for item in items for each in item["completions"]],
        reward_along="steps",
        step_separator=" w5 ",
        samples_per_prompt=2,
        max_completion_tokens=24,
        max_masked_share=1.0,
        missing_eos="off",
    )
    trainer.train()
    first = trainer.log()[0]
    of_first = seen[:8]
    assert any(len(item["steps"]) > 1 for item in of_first)
    masked = ["w9" in item["steps"][0] for item in of_first]
    assert first["scoring/masked_share"] == sum(masked) / 8
    sums = [sum(result.along.scores) for result, out in zip(score_of_steps(of_first), masked, strict=True) if not out]
    assert first["objective/scores"] == pytest.approx(sum(sums) / len(sums), abs=1e-6)
    assert first["eval/scores"] > 0


@pytest.mark.parametrize("further", [{"scorer_urls": ("http://a", "http://b")}, {"send_eos_text": True}])
def test_steps_are_rewarded_by_one_reward_model_as_it_is(further):
    with pytest.raises(ConfigError, match='reward_along = "steps" needs exactly one process reward model'):
        PPOConfig(reward_along="steps", **further)
