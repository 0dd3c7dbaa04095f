"""How the networks are trained: precision, gradient checkpointing, in every combination with LoRA and the critics."""

from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from plaudit_ppo import PPOConfig, TrunkCritic, add_lora, frozen_copy
from plaudit_ppo.distributed.learner_setup import checkpoint_layers, make_learner, set_precision
from plaudit_ppo.errors import ConfigError, RatioError
from plaudit_ppo.models.networks import transformer_layers
from plaudit_ppo.rollout.forward import evaluate_rollouts
from plaudit_ppo.rollout.prompts import pad_left
from plaudit_ppo.rollout.sampling import sample_rollouts
from plaudit_ppo.runs.log import read_log
from plaudit_ppo.training.guards import RATIO_TOLERANCE, SAMPLING_TOLERANCE
from plaudit_ppo.training.metrics import sampling_ratio_error

NETWORKS = pytest.mark.parametrize("lora_rank", [0, 4])
CRITICS = pytest.mark.parametrize("critic_trunk", ["separate", "policy"])


@pytest.fixture
def train(make_trainer, make_policy, tmp_path):
    """A run of two iterations; returns the trained weights and the log, without what a clock says."""

    def train(name, *, lora_rank=0, critic_trunk="separate", hook=None, **settings):
        policy = make_policy()
        critic = None
        if critic_trunk == "policy":
            critic = TrunkCritic(policy, head_init="normal", generator=torch.Generator().manual_seed(1))
        if lora_rank:
            precisions = {name: settings[name] for name in settings if name.endswith("precision")}
            policy = add_lora(policy, PPOConfig(lora_rank=lora_rank, **precisions))
        if hook:
            policy.register_forward_hook(hook)
        make_trainer(
            policy=policy, critic=critic, reference=False if lora_rank else None, output=str(tmp_path / name),
            lr_schedule="constant", num_minibatches=2, micro_batch_size=2, **settings,
        ).train()  # fmt: skip
        log = [
            {name: value for name, value in line.items() if not name.startswith("time/") and not name.endswith("_s")}
            for line in read_log(tmp_path / name / "log.jsonl")
        ]
        return {name: p.detach() for name, p in policy.named_parameters()}, log

    return train


@NETWORKS
@CRITICS
def test_gradient_checkpointing_changes_no_number(train, lora_rank, critic_trunk):
    networks = {"lora_rank": lora_rank, "critic_trunk": critic_trunk}
    weights, log = train("kept", **networks)
    other_weights, other_log = train("again", gradient_checkpointing=True, **networks)
    assert all(torch.equal(weights[name], other_weights[name]) for name in weights)
    assert log == other_log


def test_a_checkpointed_layer_is_computed_again_for_the_gradient_alone(make_policy):
    plain, checkpointed = make_policy(), make_policy()
    checkpoint_layers(checkpointed)
    ids, calls = torch.arange(2, 10)[None], []
    checkpointed.model.layers[0].mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        checkpointed(ids, use_cache=False)
    assert len(calls) == 1
    for model in (plain, checkpointed):
        model(ids, use_cache=False).logits.logsumexp(2).sum().backward()
    assert len(calls) == 3
    for one, other in zip(plain.parameters(), checkpointed.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad)


def test_a_network_that_names_no_layers_cannot_be_checkpointed():
    with pytest.raises(ConfigError, match="gradient_checkpointing: Linear does not name its layers"):
        checkpoint_layers(torch.nn.Linear(2, 2))


@NETWORKS
@CRITICS
def test_in_bfloat16_the_ratio_is_1_within_its_rounding_and_weights_stay_float32(train, lora_rank, critic_trunk):
    """Detail 23: the tolerance is the precision's; policy and reference round alike, so the KL begins at 0."""
    networks, seen = {"lora_rank": lora_rank, "critic_trunk": critic_trunk}, set()
    weights, log = train(
        "run",
        precision="bfloat16",
        gradient_checkpointing=True,
        hook=lambda module, inputs, output: seen.add(output.logits.dtype),
        **networks,
    )
    assert seen == {torch.bfloat16}
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
    assert log[0]["objective/kl"] == pytest.approx(0.0, abs=1e-5)
    assert abs(log[1]["objective/kl"]) > 1e-3


@CRITICS
def test_a_run_with_an_adapter_keeps_the_weights_below_it_in_bfloat16(train, critic_trunk):
    settings = {"precision": "bfloat16", "frozen_precision": "bfloat16", "gradient_checkpointing": True}
    weights, log = train("run", lora_rank=4, critic_trunk=critic_trunk, logits_chunk_tokens=4, **settings)
    dtypes = {name: tensor.dtype for name, tensor in weights.items()}
    assert {dtype for name, dtype in dtypes.items() if "lora_" in name} == {torch.float32}
    assert {dtype for name, dtype in dtypes.items() if "lora_" not in name} == {torch.bfloat16}
    assert log[0]["objective/kl"] == pytest.approx(0.0, abs=1e-5)
    assert abs(log[1]["objective/kl"]) > 1e-3


def test_with_a_reference_in_bfloat16_the_kl_begins_at_its_rounding_and_the_policy_computes_as_before(
    make_trainer, make_policy
):
    exact, rounded = (
        make_trainer(reference=frozen_copy(make_policy(), precision), frozen_precision=precision, output=precision)
        for precision in ("float32", "bfloat16")
    )
    for trainer in (exact, rounded):
        trainer.train()
    assert {p.dtype for p in rounded.reference.parameters()} == {torch.bfloat16}
    assert rounded.log()[0]["objective/kl"] == pytest.approx(0.0, abs=0.2)
    assert rounded.log()[0]["objective/kl"] != 0.0
    assert rounded.log()[0]["objective/entropy"] == exact.log()[0]["objective/entropy"]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"lora_rank": 4, "precision": "bfloat16"}, "and lora_rank"),
        ({"deepspeed_config": "zero-3.json"}, "and stage 3"),
    ],
)
def test_two_precisions_where_deepspeed_wants_one_are_refused(make_policy, make_critic, tmp_path, settings, says):
    two, settings = SimpleNamespace(device=torch.device("cpu"), num_processes=2), dict(settings)
    if "deepspeed_config" in settings:
        (tmp_path / "zero-3.json").write_text('{"zero_optimization": {"stage": 3}}')
        settings["deepspeed_config"] = str(tmp_path / "zero-3.json")
    config = PPOConfig(sharding="deepspeed", frozen_precision="bfloat16", **settings)
    policy = add_lora(make_policy(), config) if config.lora_rank else make_policy()
    with pytest.raises(
        ConfigError, match=f'frozen_precision = "bfloat16" and gathered_precision = "float32": .* {says}$'
    ):
        make_learner(policy, make_critic(), config, two)


def test_in_bfloat16_a_policy_that_is_another_in_training_is_still_noticed(train):
    """Detail 23: the logits of passes with gradients are those of a temperature that is off by a third."""

    def distort(module, inputs, output):
        if torch.is_grad_enabled():
            output.logits = output.logits * 1.3
        return output

    with pytest.raises(RatioError, match=r"limit 2\.00e-01 \(ratio_tolerance\)"):
        train("run", precision="bfloat16", hook=distort)


@pytest.mark.slow
def test_the_rounding_of_bfloat16_stays_below_half_of_its_tolerances():
    """Detail 23: 16 rollouts of a random Llama of 12 layers, width 256, in micro-batches of 16 and of 4."""
    shape = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 12, "num_attention_heads": 4}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        policy = LlamaForCausalLM(LlamaConfig(vocab_size=2000, initializer_range=0.08, **shape)).eval()
    set_precision(policy, "bfloat16", torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    prompts = [torch.randint(2, 2000, (2 + row,), generator=generator).tolist() for row in range(16)]
    rollouts = sample_rollouts(
        policy, *pad_left(prompts, 1), max_tokens=32, temperature=1.0, eos_ids=[0], pad_id=1, generator=generator
    )
    critic = lambda input_ids, **_: torch.zeros(input_ids.shape)  # noqa: E731
    whole, parts = (
        evaluate_rollouts(policy, policy, critic, rollouts, temperature=1.0, micro_batch_size=size)[0]
        for size in (16, 4)
    )
    ratio_error = sampling_ratio_error(whole, parts, rollouts.completion_mask)
    sampling_error = sampling_ratio_error(rollouts.sampled_logprobs, whole, rollouts.completion_mask)
    assert 1e-3 < ratio_error < RATIO_TOLERANCE["bfloat16"] / 2
    assert 1e-3 < sampling_error < SAMPLING_TOLERANCE["bfloat16"] / 2


@pytest.mark.parametrize("sharding", ["fsdp", "deepspeed"])
def test_a_head_on_a_sharded_network_is_refused(make_policy, sharding):
    two = SimpleNamespace(device=torch.device("cpu"), num_processes=2)
    policy = make_policy()
    head = TrunkCritic(policy, head_init="zero", generator=torch.Generator())
    with pytest.raises(ConfigError, match=f'critic_trunk = "policy" cannot be combined with sharding = "{sharding}"'):
        make_learner(policy, head, PPOConfig(sharding=sharding), two)


def test_one_process_has_nobody_to_share_with(make_policy, make_critic):
    """Sharded networks: tests/e2e/test_ppo_processes.py."""
    learner = make_learner(make_policy(), make_critic(), PPOConfig(sharding="fsdp"), Accelerator())
    assert type(learner.policy).__name__ == "LlamaForCausalLM"


def test_the_layers_of_a_network_are_found_below_its_wrappers(make_policy, make_critic):
    def names(model):
        return [type(layer).__name__ for layer in transformer_layers(model)]

    assert names(make_policy()) == names(make_critic()) == ["LlamaDecoderLayer"] * 2
    adapted: PreTrainedModel = add_lora(make_policy(), PPOConfig(lora_rank=2))
    assert names(adapted) == ["LlamaDecoderLayer"] * 2
