import dataclasses
import re
import tomllib

import pytest

from plaudit_ppo.config import PPOConfig
from plaudit_ppo.errors import ConfigError
from plaudit_ppo.settings_text import _HEADINGS, load_config, new_file, read_assignments


@pytest.mark.parametrize(
    ("assignment", "value"),
    [
        ("policy=models/sft", "models/sft"),
        ("policy=a=b c", "a=b c"),
        ("policy = models/sft ", "models/sft"),
        ("critic=none", None),
        ("kl_coef=0.1", 0.1),
        ("kl_coef=1", 1.0),
        ("learning_rate=3e-6", 3e-6),
        ("kl_budget=none", None),
        ("seed=7", 7),
        ("whiten_rewards=true", True),
        ("whiten_rewards=false", False),
        ("missing_eos=off", "off"),
        ("scorer_urls=http://a,http://b", ["http://a,http://b"]),
        ('scorer_urls=["http://a", "http://b"]', ["http://a", "http://b"]),
        ("scorer_weights=[1, 0.5]", [1, 0.5]),
        ("scorer_weights=2", [2.0]),
        ("scorer_urls=[]", []),
        ("prompts=org/a@v1#train[:10%]", ["org/a@v1#train[:10%]"]),
        ('stop=["\\n\\n", "###"]', ["\n\n", "###"]),
    ],
)
def test_a_value_is_read_by_the_type_of_its_setting(assignment, value):
    name = assignment.partition("=")[0].strip()
    assert read_assignments([assignment]) == {name: value}


def test_what_is_assigned_replaces_what_the_file_says_and_the_last_one_counts(tmp_path):
    (tmp_path / "run.toml").write_text("kl_coef = 0.1\nseed = 1\n")
    config = load_config(tmp_path / "run.toml", ["seed=2", "seed=3", "gamma=0.9"])
    assert config == PPOConfig(kl_coef=0.1, seed=3, gamma=0.9)


@pytest.mark.parametrize(
    ("assignment", "says"),
    [
        ("cliprange=0.1", '--set cliprange=0.1: unknown setting "cliprange"; did you mean "clip_range"?'),
        ("seed", "--set seed: no value; write --set seed=VALUE"),
        ("seed=", "run.toml with --set: seed = '': has to be a whole number; the default is 0"),
        ("seed=1.5", "seed = '1.5': has to be a whole number; the default is 0"),
        ("seed=none", "seed = 'none': has to be a whole number; the default is 0"),
        ("epochs=0", "run.toml with --set: epochs = 0, limit at least 1; the default is 4"),
        ("kl_coef=nan", "kl_coef = nan: has to be a number"),
        ("kl_coef=high", "kl_coef = 'high': has to be a number"),
        ("whiten_rewards=yes", "whiten_rewards = 'yes': has to be true or false; the default is false"),
        ("missing_eos=drop", "missing_eos = 'drop': has to be one of replace, subtract, off"),
        ("scorer_weights=[1,", "scorer_weights = '[1,': has to be a list of numbers"),
        ("scorer_weights=a", "scorer_weights = 'a': has to be a list of numbers"),
        ("top_p=0.9", '--set top_p=0.9: no setting "top_p": PPO\'s probability ratio needs the whole distribution'),
        ("stop=", "stop = ('',): has to be a list of strings; the default is []"),
        ("prompt_weights=[1]", "prompt_weights has 1 entries, prompts 0; give one weight for each source, or none"),
        ("policy=", "policy = '': has to be a string"),
        ("num_minibatches=65", "num_minibatches = 65, limit 64 (rollout_batch_size)"),
    ],
)
def test_a_bad_assignment_is_one_line(tmp_path, assignment, says):
    (tmp_path / "run.toml").write_text("kl_coef = 0.1\n")
    with pytest.raises(ConfigError) as caught:
        load_config(tmp_path / "run.toml", [assignment])
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_new_file_shows_every_setting_with_its_default_and_changes_none(tmp_path):
    text = new_file(PPOConfig())
    assert tomllib.loads(text) == {}
    shown = re.findall(r"^# (\w+) =", text, re.MULTILINE)
    assert shown == [field.name for field in dataclasses.fields(PPOConfig)]
    uncommented = re.sub(r"^# (\w+ = .+)$", r"\1", text, flags=re.MULTILINE)
    (tmp_path / "run.toml").write_text(uncommented)
    assert load_config(tmp_path / "run.toml") == PPOConfig()
    assert set(_HEADINGS) < set(shown)


def test_a_new_file_has_the_settings_that_differ_in_force(tmp_path):
    config = PPOConfig(policy="models/sft", epochs=2)
    (tmp_path / "run.toml").write_text(new_file(config))
    assert tomllib.loads(new_file(config)) == {"policy": "models/sft", "epochs": 2}
    assert load_config(tmp_path / "run.toml") == config
