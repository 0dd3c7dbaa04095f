"""What DeepSpeed is told. What it then does: tests/e2e/test_ppo_processes.py."""

from importlib.util import find_spec

import pytest

from plaudit_ppo import PPOConfig
from plaudit_ppo.distributed.deepspeed_settings import check_zero, zero_settings
from plaudit_ppo.errors import ConfigError


@pytest.fixture
def settings(tmp_path):
    def settings(text):
        path = tmp_path / "zero.json"
        path.write_text(text)
        return zero_settings(PPOConfig(sharding="deepspeed", deepspeed_config=path))

    return settings


def test_without_a_file_it_is_stage_2_and_the_runs_own_settings_are_told():
    told = zero_settings(PPOConfig(max_grad_norm=0.5))
    assert told["zero_optimization"] == {"stage": 2}
    assert told["gradient_clipping"] == 0.5
    assert told["gradient_accumulation_steps"] == 1


def test_what_the_file_may_say_is_taken_as_it_is(settings):
    told = settings('{"zero_optimization": {"stage": 3, "overlap_comm": false}, "wall_clock_breakdown": true}')
    assert told["zero_optimization"] == {"stage": 3, "overlap_comm": False}
    assert told["wall_clock_breakdown"] is True


def test_the_file_may_begin_with_a_byte_order_mark(settings):
    assert settings('\ufeff{"zero_optimization": {"stage": 3}}')["zero_optimization"] == {"stage": 3}


STAGE_2 = '"zero_optimization": {"stage": 2}'


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "is not JSON"),
        ("[]", "holds no JSON object"),
        ("{}", r"zero_optimization\.stage = None; has to be 1, 2 or 3"),
        ('{"zero_optimization": {"stage": 0}}', r"zero_optimization\.stage = 0; has to be 1, 2 or 3"),
        (
            '{"zero_optimization": {"stage": 2, "reduce_bucket_size": "auto"}}',
            'reduce_bucket_size = "auto"; give a num',
        ),
        ('{"zero_optimization": {"stage": 2, "compute_grad_norm": false}}', "compute_grad_norm: leave it out"),
        ('{"zero_optimization": {"stage": 3, "offload_param": {"device": "nvme"}}}', 'offload_param.device = "nvme"'),
        (f'{{{STAGE_2}, "optimizer": {{}}}}', 'sets "optimizer"; leave it out, and set learning_rate'),
        (f'{{{STAGE_2}, "bf16": {{"enabled": true}}}}', 'sets "bf16"; leave it out, and set precision of the run'),
        (f'{{{STAGE_2}, "gradient_allreduce_op": "sum"}}', 'sets "gradient_allreduce_op"; leave it out, only zero_opt'),
    ],
)
def test_a_file_that_says_what_is_not_its_to_say_is_refused(settings, text, says):
    with pytest.raises(ConfigError, match=rf"deepspeed_config: .*zero\.json.*{says}"):
        settings(text)


def test_a_file_that_is_missing_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"deepspeed_config: .*none\.json cannot be read \(No such file"):
        zero_settings(PPOConfig(deepspeed_config=tmp_path / "none.json"))


@pytest.mark.skipif(find_spec("deepspeed") is not None, reason="deepspeed is installed")
def test_without_the_package_it_is_said_what_to_install():
    check_zero(PPOConfig())
    with pytest.raises(ConfigError, match=r'needs the package deepspeed; pip install "plaudit\[deepspeed\]"'):
        check_zero(PPOConfig(sharding="deepspeed"))


def test_mixed_precision_adds_up_gradients_in_float32():
    mixed = {"precision": "bfloat16", "gathered_precision": "bfloat16", "sharding": "deepspeed"}
    told = zero_settings(PPOConfig(**mixed))
    assert told["bf16"] == {"enabled": True}
    assert (told["data_types"], told["communication_data_type"]) == ({"grad_accum_dtype": "fp32"}, "fp32")
    assert "bf16" not in zero_settings(PPOConfig(sharding="deepspeed", precision="bfloat16"))


def test_mixed_precision_in_stage_1_is_refused(tmp_path):
    path = tmp_path / "zero.json"
    path.write_text('{"zero_optimization": {"stage": 1}}')
    config = PPOConfig(precision="bfloat16", gathered_precision="bfloat16", sharding="deepspeed", deepspeed_config=path)
    with pytest.raises(ConfigError, match=r"sets ZeRO stage 1, .*; set stage 2 or 3"):
        zero_settings(config)
