import copy
import dataclasses
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from plaudit_ppo.config import PPOConfig
from plaudit_ppo.errors import ConfigError
from plaudit_ppo.settings_text import changed_settings, load_config, settings_help, to_toml


@pytest.fixture
def load(tmp_path):
    def load(text):
        path = tmp_path / "run.toml"
        path.write_text(text)
        return load_config(path)

    return load


def test_settings_left_out_have_their_default(load):
    assert load("kl_coef = 0.1") == PPOConfig(kl_coef=0.1)


def test_a_file_may_begin_with_a_byte_order_mark(load):
    assert load("\ufeffkl_coef = 0.1") == PPOConfig(kl_coef=0.1)


def test_a_whole_number_may_stand_for_a_number(load):
    assert load("temperature = 1").temperature == 1.0
    assert type(load("temperature = 1").temperature) is float


def test_a_list_stands_for_a_tuple_and_a_path_for_a_string():
    config = PPOConfig(policy=Path("models") / "sft", scorer_urls=["http://a"], scorer_weights=[1])
    assert (config.policy, config.scorer_urls, config.scorer_weights) == ("models/sft", ("http://a",), (1.0,))
    assert [type(weight) for weight in config.scorer_weights] == [float]
    one = PPOConfig(prompts=Path("data") / "a.jsonl", stop="\n\n")  # one entry of a list that is mostly one
    assert (one.prompts, one.stop) == (("data/a.jsonl",), ("\n\n",))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"kl_coef": True}, "kl_coef = True: has to be a number; the default is 0.05"),
        ({"kl_coef": "0.1"}, "kl_coef = '0.1': has to be a number; the default is 0.05"),
        ({"kl_coef": None}, "kl_coef = None: has to be a number; the default is 0.05"),
        ({"kl_budget": float("inf")}, "kl_budget = inf: has to be a number; the default is none"),
        ({"seed": 3.0}, "seed = 3.0: has to be a whole number; the default is 0"),
        ({"whiten_rewards": 1}, "whiten_rewards = 1: has to be true or false; the default is false"),
        ({"output": 5}, 'output = 5: has to be a string; the default is "runs/ppo"'),
        (
            {"missing_eos": None},
            'missing_eos = None: has to be one of replace, subtract, off; the default is "replace"',
        ),
        ({"metrics_port": 65536}, "metrics_port = 65536, limit at least 0 and at most 65535; the default is 0"),
        ({"clip_range": 0}, "clip_range = 0.0, limit above 0 and at most 1; the default is 0.2"),
        ({"kl_budget": -1}, "kl_budget = -1.0, limit above 0; the default is none"),
        (
            {"scorer_weights": (float("nan"),)},
            "scorer_weights = (nan,): has to be a list of numbers; the default is []",
        ),
        ({"scorer_urls": {"http://a", "http://b"}}, ": has to be a list of strings; the default is []"),
        ({"cliprange": 0.1}, 'unknown setting "cliprange"; did you mean "clip_range"?'),
    ],
)
def test_nothing_else_is_converted_and_what_is_refused_is_one_line(settings, says):
    with pytest.raises(ConfigError) as caught:
        PPOConfig(**settings)
    assert str(caught.value).endswith(says)
    assert "\n" not in str(caught.value)
    (name,) = settings
    with pytest.raises(ConfigError):
        dataclasses.replace(PPOConfig(), **{name: settings[name]})


def test_settings_are_given_by_name():
    with pytest.raises(TypeError, match="by name"):
        PPOConfig("policy")


def test_every_default_is_of_its_type_and_within_its_limits():
    default = PPOConfig()
    assert PPOConfig(**dataclasses.asdict(default)) == default


def test_a_copy_is_equal_and_a_replaced_setting_is_the_only_one_that_differs():
    config = PPOConfig(kl_coef=0.1, scorer_urls=("http://a",))
    assert pickle.loads(pickle.dumps(config)) == copy.deepcopy(config) == config  # noqa: S301  our own bytes
    assert dataclasses.asdict(dataclasses.replace(config, kl_coef=0.2)) == dataclasses.asdict(config) | {"kl_coef": 0.2}
    assert hash(dataclasses.replace(config)) == hash(config)


def test_settings_of_an_older_run_are_read_and_what_it_did_not_know_has_its_default(load):
    older = [line for line in to_toml(PPOConfig(kl_coef=0.1)).splitlines() if "sharding" not in line]
    assert load("\n".join(older)) == PPOConfig(kl_coef=0.1)


def test_settings_are_read_without_torch():
    code = "import plaudit_ppo.settings_text as text, sys; text.settings_help(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_what_is_written_is_read_back_the_same(load):
    config = PPOConfig(
        policy='a "quoted" päth\\x', scorer_urls=("http://a", "http://b"), kl_coef=1e-7, send_eos_text=True, seed=3
    )
    assert load(to_toml(config)) == config
    weighted = PPOConfig(scorer_urls=("http://a", "http://b"), scorer_weights=(1, 0.5), kl_budget=3)
    assert load(to_toml(weighted)) == weighted


def test_changed_settings_are_named_with_both_values():
    before, now = PPOConfig(), PPOConfig(kl_coef=0.1, kl_budget=3)
    assert changed_settings(before, now) == ["kl_coef: 0.05 -> 0.1", "kl_budget: none -> 3.0"]
    assert changed_settings(now, now) == []


def test_a_configuration_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        PPOConfig().kl_coef = 1.0


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("cliprange = 0.1", 'unknown setting "cliprange"; did you mean "clip_range"?'),
        ("zzz = 1", 'unknown setting "zzz"; "plaudit-ppo train --help" lists them all'),
        ('kl_coef = "high"', "kl_coef = 'high': has to be a number; the default is 0.05"),
        ("epochs = 1.5", "epochs = 1.5: has to be a whole number; the default is 4"),
        ("epochs = true", "epochs = True: has to be a whole number; the default is 4"),
        ("epochs = 0", "epochs = 0, limit at least 1; the default is 4"),
        ("gamma = 1.5", "gamma = 1.5, limit at least 0 and at most 1; the default is 1.0"),
        ("temperature = 0", "temperature = 0.0, limit above 0; the default is 0.7"),
        ("kl_coef = nan", "kl_coef = nan: has to be a number; the default is 0.05"),
        ("policy = ''", "policy = '': has to be a string; the default is none"),
        ("scorer_urls = 'http://a'", "scorer_urls = 'http://a': has to be a list of strings; the default is []"),
        ("missing_eos = 'drop'", "missing_eos = 'drop': has to be one of replace, subtract, off"),
        ("scorer_weights = ['a']", "scorer_weights = ('a',): has to be a list of numbers; the default is []"),
        (
            "scorer_urls = ['http://a']\nscorer_weights = [1, 2]",
            "scorer_weights has 2 entries, scorer_urls 1; give one weight for each reward model, or none",
        ),
        ("critic = 'rm'\ncritic_trunk = 'policy'", "critic = 'rm': a head on the policy's network is not loaded"),
        ("num_minibatches = 65", "num_minibatches = 65, limit 64 (rollout_batch_size)"),
        ("clip_range_high = 0", "clip_range_high = 0.0, limit above 0; the default is none"),
        ("dual_clip = 1", "dual_clip = 1.0, limit above 1; the default is none"),
        (
            "critic_warmup_iterations = 100",
            "critic_warmup_iterations = 100, limit 99 (below iterations), because the policy",
        ),
        (
            "critic_warmup_iterations = 1\ncritic_trunk = 'policy'",
            "a head on the policy's network cannot be trained without the policy; set it to 0, or critic_trunk =",
        ),
        (
            "critic_warmup_iterations = 1\nvalue_coef = 0",
            "with value_coef = 0 the critic learns nothing; set critic_warmup_iterations = 0, or",
        ),
        ("samples_per_prompt = 3", "rollout_batch_size = 64 is not a multiple of samples_per_prompt = 3, but the"),
        (
            "samples_per_prompt = 32",
            "rollout_micro_batch_size = 16 is not a multiple of samples_per_prompt = 32, but the "
            "completions of a prompt",
        ),
        ("overlong_buffer_tokens = 129", "overlong_buffer_tokens = 129, limit 128 (max_completion_tokens); lower it"),
        ("sampling_correction_max = 0.5", "sampling_correction_max = 0.5, limit at least 1; the default is 2.0"),
        (
            "sampling_correction = 'token_truncate'\nsampling_tolerance = 0.1",
            'sampling_tolerance = 0.1 has no effect under sampling_correction = "token_truncate"; leave it out',
        ),
        ("kl_coef = ", "not a TOML file"),
    ],
)
def test_a_bad_setting_is_one_line_that_names_file_value_limit_and_remedy(load, tmp_path, text, says):
    with pytest.raises(ConfigError) as caught:
        load(text)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / 'run.toml'}: ")
    assert says in message
    assert "\n" not in message


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"absent\.toml: cannot be read \(No such file or directory\)"):
        load_config(tmp_path / "absent.toml")


def test_the_help_names_every_setting_with_its_default():
    text = settings_help()
    for field in dataclasses.fields(PPOConfig):
        assert f"  {field.name} = " in text
    described = "for a tokenizer without a pad token, or with pad == EOS: add a pad token, or refuse to start"
    assert f'missing_pad = "add"\n      {described} (one of add, refuse)' in text
    assert "learning_rate = 3e-06" in text


AHEAD = {"max_staleness": 1, "sampling_correction": "token_truncate"}
ENGINE = {"sampler": "vllm", "engine_urls": ("http://127.0.0.1:8001",)}


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"max_staleness": 1}, r'max_staleness = 1, but sampler = "local"'),
        (ENGINE | {"max_staleness": 1}, r'max_staleness = 1, but sampling_correction = "none"'),
        (ENGINE | AHEAD | {"sharding": "deepspeed"}, r'max_staleness = 1 and sharding = "deepspeed"'),
        (ENGINE | AHEAD | {"max_staleness": 2}, "max_staleness = 2, limit at least 0 and at most 1; the default is 0"),
        ({"sampler": "vllm"}, r'sampler = "vllm", but engine_urls are not set'),
        ({"engine_urls": ENGINE["engine_urls"]}, r'engine_urls are set, but sampler = "local"'),
        (ENGINE | {"engine_urls": ("127.0.0.1:8001",)}, "engine_urls: url .* is not the base URL of a service"),
        (ENGINE | {"engine_urls": ENGINE["engine_urls"] * 2}, "engine_urls: .* is given twice"),
        (ENGINE | {"engine_urls": ("http://a:8001/",)}, "engine_urls: .* ends with a slash"),
        (ENGINE | {"engine_urls": ("http://me:secret@a:8001",)}, "^(?!.*secret).* put the key into engine_key_file$"),
        (ENGINE | {"engine_sync": "adapter"}, r'engine_sync = "adapter", but lora_rank = 0'),
        (ENGINE | {"temperature": 0.005}, "temperature = 0.005, limit at least 0.01"),
    ],
)
def test_settings_of_engines_that_do_not_go_together_are_refused(settings, says):
    assert PPOConfig(**ENGINE).sampler == "vllm"
    with pytest.raises(ConfigError, match=says):
        PPOConfig(**settings)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"lora_rank": 4, "frozen_precision": "bfloat16"}, 'with lora_rank: .* set precision = "bfloat16" too'),
        ({"gathered_precision": "bfloat16"}, 'needs precision = "bfloat16" and sharding = "fsdp" or "deepspeed"; set'),
        ({"gathered_precision": "bfloat16", "sharding": "fsdp"}, "set both, or leave gathered_precision out"),
        ({"gathered_precision": "bfloat16", "precision": "bfloat16"}, "set both, or leave gathered_precision out"),
    ],
)
def test_precisions_that_do_not_go_together_are_refused(settings, says):
    with pytest.raises(ConfigError, match=says):
        PPOConfig(**settings)
