import json
from functools import cache

import pytest
from transformers import LlamaConfig, PretrainedConfig

from plaudit_ppo.cli import main
from plaudit_ppo.config import PPOConfig
from plaudit_ppo.errors import ConfigError
from plaudit_ppo.planning.plan import NetworkConfigs, make_plan
from plaudit_ppo.planning.plan_text import plan_line, plan_text, verdict
from plaudit_ppo.planning.remedies import Remedy, fit, remedies

V, D, LAYERS = 1000, 64, 2
SHAPE = {"vocab_size": V, "hidden_size": D, "intermediate_size": 96, "num_hidden_layers": LAYERS}
NETWORK = LlamaConfig(num_attention_heads=4, num_labels=1, bos_token_id=None, pad_token_id=1, **SHAPE)
NETWORKS = NetworkConfigs(NETWORK, NETWORK)
LAYER = 4 * D * D + 3 * D * 96 + 2 * D
BACKBONE = V * D + LAYERS * LAYER + D
POLICY, CRITIC = 4 * (BACKBONE + V * D), 4 * (BACKBONE + D)
SMALL = {"max_prompt_tokens": 16, "max_completion_tokens": 32, "rollout_batch_size": 8, "micro_batch_size": 4}


@cache
def plan_of(*, processes=1, device="cpu", **settings):
    return make_plan(PPOConfig(**SMALL | settings), NETWORKS, processes=processes, device=device)


def test_weights_gradients_optimizer_and_cache_are_those_of_the_shapes_by_hand():
    plan = plan_of()
    for parts in plan.phases.values():
        assert (parts["policy"], parts["reference"], parts["critic"]) == (POLICY, POLICY, CRITIC)
        assert parts["optimizer"] == 2 * (POLICY + CRITIC)
    assert plan.phases["step"]["gradients"] == POLICY + CRITIC
    assert plan.phases["step"]["temporary"] == 2 * 4 * V * D
    assert plan.phases["generate"]["cache"] == pytest.approx(8 * (16 + 32) * 2 * D * LAYERS * 4, rel=1e-3)
    assert plan.phases["evaluate"]["logits"] >= 2 * 8 * 32 * V * 4
    assert plan.peak == sum(plan.phases[plan.peak_phase].values())


def test_an_adapter_has_no_reference_and_hardly_a_gradient_and_a_head_no_network():
    plan = plan_of(lora_rank=4, critic_trunk="policy")
    parts = plan.phases["update"]
    assert (parts["reference"], parts["critic"]) == (0, 4 * (D + 1))
    assert POLICY < parts["policy"] < 1.2 * POLICY
    assert parts["gradients"] == parts["optimizer"] // 2 < 0.2 * POLICY


def test_the_step_on_a_gpu_has_a_copy_of_all_that_one_network_trains():
    assert plan_of(device="cuda").phases["step"]["temporary"] == POLICY


@pytest.mark.parametrize(
    ("settings", "part"),
    [({"gradient_checkpointing": True}, "activations"), ({"logits_chunk_tokens": 8}, "logits")],
)
def test_what_is_computed_again_is_not_kept(settings, part):
    before, after = plan_of().phases["update"], plan_of(**settings).phases["update"]
    assert sum(after.values()) < sum(before.values())
    if part == "logits":
        assert after[part] <= 6 * 8 * V * 4 < before[part]


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_a_smaller_micro_batch_takes_less_and_gradients_add_up(micro_batches):
    parts = plan_of(micro_batch_size=8 // micro_batches).phases["update"]
    whole = plan_of(micro_batch_size=8).phases["update"]
    assert (parts["activations"] + parts["logits"] < whole["activations"] + whole["logits"]) == (micro_batches > 1)


@pytest.mark.parametrize(
    ("sharding", "stage", "weights", "optimizer", "gradients"),
    [("none", 0, 1, 2, 1), ("fsdp", 0, 1 / 4, 2 / 4, 1 / 4), ("deepspeed", 1, 1, 3 / 4, 1),
     ("deepspeed", 2, 1, 3 / 4, 1 / 4), ("deepspeed", 3, 1 / 4, 3 / 4, 1 / 4)],
)  # fmt: skip
def test_four_processes_share_what_their_setting_says(tmp_path, sharding, stage, weights, optimizer, gradients):
    file = tmp_path / "zero.json"
    file.write_text(json.dumps({"zero_optimization": {"stage": stage}}))
    settings = {"deepspeed_config": str(file)} if stage else {}
    parts = plan_of(processes=4, sharding=sharding, **settings).phases["step"]
    assert parts["policy"] == POLICY * weights
    assert parts["optimizer"] == (POLICY + CRITIC) * optimizer
    assert parts["gradients"] == (POLICY + CRITIC) * gradients


@pytest.mark.parametrize(("stage", "shared"), [(2, 1), (3, 1 / 4)])
def test_under_deepspeeds_mixed_precision_networks_take_half_and_the_optimizer_has_the_masters(tmp_path, stage, shared):
    file = tmp_path / "zero.json"
    file.write_text(json.dumps({"zero_optimization": {"stage": stage}}))
    mixed = {"precision": "bfloat16", "gathered_precision": "bfloat16", "frozen_precision": "bfloat16"}
    parts = plan_of(processes=4, sharding="deepspeed", deepspeed_config=str(file), **mixed).phases["step"]
    assert parts["policy"] == parts["reference"] == POLICY / 2 * shared
    assert parts["optimizer"] == (POLICY + CRITIC) * 3 / 4


def test_a_policy_that_is_shared_is_whole_while_it_generates():
    assert plan_of(processes=4, sharding="fsdp").phases["generate"]["gathered"] == POLICY


def test_engines_leave_no_cache_and_no_generation_here():
    plan = plan_of(sampler="vllm", engine_urls=("http://127.0.0.1:1",))
    assert list(plan.phases) == ["evaluate", "update", "step"]


def test_the_policy_that_sampled_is_kept_in_the_memory_of_the_cpu_while_engines_sample_ahead():
    ahead = {"sampler": "vllm", "engine_urls": ("http://127.0.0.1:1",), "sampling_correction": "token_truncate"}
    plan = plan_of(**ahead, max_staleness=1)
    assert {parts["former policy"] for parts in plan.phases.values()} == {POLICY}
    assert plan_of(**ahead).phases["step"]["former policy"] == 0
    on_a_gpu = plan_of(**ahead, max_staleness=1, device="cuda")
    assert on_a_gpu.phases["step"]["former policy"] == 0
    assert "and so does the former policy" in plan_text(PPOConfig(**SMALL, **ahead, max_staleness=1), on_a_gpu, [])


def test_each_remedy_saves_and_they_come_in_the_order_of_what_they_save():
    plan, config = plan_of(), PPOConfig(**SMALL)
    found = remedies(config, NETWORKS, plan)
    peaks = [remedy.plan.peak for remedy in found]
    assert peaks == sorted(peaks)
    assert all(peak < plan.peak for peak in peaks)
    assert {"lora_rank", "critic_trunk"} <= {name for remedy in found for name in remedy.settings}
    text = plan_text(config, plan, found)
    assert text.startswith(plan_line(plan))
    assert "lora_rank = 16" in text


def test_a_limit_is_met_by_settings_that_keep_the_numbers_first_and_not_by_more_than_it_takes():
    plan, config = plan_of(), PPOConfig(**SMALL)
    assert fit(config, NETWORKS, plan, plan.peak).settings == {}
    first = fit(config, NETWORKS, plan, plan.peak - 1).settings
    assert set(first) <= {"gradient_checkpointing", "logits_chunk_tokens", "micro_batch_size"}


def test_a_head_on_a_network_that_is_spread_is_no_remedy():
    spread = {"sharding": "fsdp", "lora_rank": 4, "gradient_checkpointing": True, "micro_batch_size": 1}
    found = remedies(PPOConfig(**SMALL | spread), NETWORKS, plan_of(processes=2, **spread))
    assert not any("critic_trunk" in remedy.settings for remedy in found)


def test_what_cannot_be_computed_without_data_is_one_line():
    class Unknown(PretrainedConfig):
        model_type = "unknown"

    with pytest.raises(ConfigError, match=r"plan: unknown cannot be simulated without data \(ValueError: Unrecog"):
        make_plan(PPOConfig(**SMALL), NetworkConfigs(Unknown(), Unknown()), processes=1, device="cpu")


@pytest.fixture
def settings_file(tmp_path):
    LlamaConfig(num_attention_heads=4, **SHAPE | {"num_hidden_layers": 1}).save_pretrained(tmp_path / "policy")
    file = tmp_path / "run.toml"
    lines = [f'policy = "{tmp_path / "policy"}"', "lora_rank = 4", "gradient_checkpointing = true"]
    file.write_text("\n".join([*lines, "max_prompt_tokens = 16", "max_completion_tokens = 32", ""]))
    return str(file)


def test_the_command_reads_configs_alone_and_says_what_fits(capsys, settings_file):
    assert main(["plan", "--config", settings_file, "--device", "cpu", "--memory", "1"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("plan: 0.0")
    assert "what each setting alone would save:\n" in out
    assert out.endswith("\n1 GB: fits\n")


def test_the_verdict_names_settings_where_some_do_and_says_where_none_does():
    plan = plan_of()
    fitting = Remedy({"micro_batch_size": 1, "lora_rank": 16}, plan)
    assert verdict(plan, plan.peak, None).endswith(" GB: fits")
    assert "does not fit; with micro_batch_size = 1, lora_rank = 16 it does: 0.0" in verdict(plan, 1000, fitting)
    assert "does not fit with any of the settings above; use a smaller policy" in verdict(plan, 1000, None)


def test_the_same_as_json(capsys, settings_file):
    flags = ["--set", "micro_batch_size=1", "--processes", "2", "--device", "cuda", "--memory", "1", "--json"]
    assert main(["plan", "--config", settings_file, *flags]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["peak_bytes"] == sum(said["phases"][said["peak_phase"]].values())
    assert (said["processes"], said["device"], said["fits"], said["memory_bytes"]) == (2, "cuda", True, 10**9)
    assert said["fits_with"] is None
    assert all(each["saved_bytes"] > 0 for each in said["remedies"])
    assert any("max_prompt_tokens = 16" in each for each in said["assumptions"])


@pytest.mark.parametrize("flags", [["--processes", "0"], ["--memory", "0"], ["--memory", "x"], ["--device", "tpu"]])
def test_a_wrong_flag_is_exit_2(capsys, settings_file, flags):
    with pytest.raises(SystemExit, match="2"):
        main(["plan", "--config", settings_file, *flags])
    assert capsys.readouterr().err.count("\n") == 1
