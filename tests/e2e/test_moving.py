"""Moving to another reward model in the middle of a training, as docs/how-to/upgrade-a-reward-model.md says."""

import json

import pytest
from ppo_runs import train_to_the_end, training, wait_for_iterations, write_config, write_policy

from plaudit_ppo.runs.checkpoints import newest_checkpoint
from plaudit_ppo.runs.log import read_log

pytestmark = pytest.mark.slow


def test_a_run_refuses_another_reward_model_and_a_new_run_goes_on_from_its_checkpoint(serve, tiny_bundle, tmp_path):
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "good"}\n{"prompt": "so bad"}\n')
    small = {
        "prompts": str(tmp_path / "prompts.jsonl"), "rollout_batch_size": 8, "rollout_micro_batch_size": 4,
        "max_completion_tokens": 6, "missing_eos": "off", "checkpoint_every": 1, "learning_rate": 1e-3,
    }  # fmt: skip
    old, new = tiny_bundle(), tiny_bundle(heads={"another": 0.5})
    with serve(old) as before, serve(new) as after:
        config = write_config(
            tmp_path / "old.toml", policy=str(write_policy(tmp_path / "policy")), output=str(tmp_path / "old"),
            scorer_urls=(before.url,), iterations=1_000_000, **small,
        )  # fmt: skip
        with training("--config", config) as process:
            wait_for_iterations(process, tmp_path / "old", 3)
        with training("--resume", tmp_path / "old", "--url", after.url) as process:
            _, err = process.communicate(timeout=240)
        assert process.returncode == 1
        assert "the scores come from another reward model than before" in err

        checkpoint = newest_checkpoint(tmp_path / "old" / "checkpoints")
        config = write_config(
            tmp_path / "new.toml", policy=str(checkpoint / "policy"), critic=str(checkpoint / "critic"),
            output=str(tmp_path / "new"), scorer_urls=(after.url,),
            eval_scorer_urls=(before.url,), iterations=2, **small,
        )  # fmt: skip
        train_to_the_end("--config", config)
    lines = read_log(tmp_path / "new" / "log.jsonl")
    assert lines[0]["objective/kl"] == pytest.approx(0.0, abs=1e-5)
    # The new head gives half of the sum that the old one gives: the same rollouts, scored by both.
    assert lines[0]["scoring/score_mean"] == pytest.approx(lines[0]["eval/scores"] / 2)
    assert fingerprint(tmp_path / "old") != fingerprint(tmp_path / "new")


def fingerprint(output):
    """Of the reward model that a run knows."""
    return json.loads((newest_checkpoint(output / "checkpoints") / "state.json").read_text())["fingerprint"]
