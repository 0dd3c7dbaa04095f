"""Memory of a process in each part of an iteration: weights, gradients, optimizer, activations, logits, cache.

What the passes take is simulated; what weights, gradients and the optimizer take is counted, and divided by the number
of processes that share them.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from accelerate.utils import parse_flag_from_env
from transformers import AutoConfig, PretrainedConfig

from plaudit_ppo.config import PPOConfig
from plaudit_ppo.distributed.deepspeed_settings import zero_settings
from plaudit_ppo.errors import ConfigError, one_line
from plaudit_ppo.models.networks import load_pretrained
from plaudit_ppo.models.places import config_directory
from plaudit_ppo.planning.simulation import NetworkSize, Simulation, simulate

_PASSES = ("generate", "evaluate", "update")
PARTS = (
    "policy",
    "reference",
    "critic",
    "former policy",
    "optimizer",
    "gradients",
    "activations",
    "logits",
    "cache",
    "gathered",
    "temporary",
)


@dataclass(frozen=True)
class NetworkConfigs:
    """What says how large the networks are.

    Attributes:
        policy: of transformers.
        critic: likewise, with one label.
    """

    policy: PretrainedConfig
    critic: PretrainedConfig


@dataclass(frozen=True)
class Plan:
    """Bytes of one process.

    Attributes:
        phases: of "generate", "evaluate", "update" (forward and backward) and "step" (the optimizer's), bytes by part,
            at the moment of that phase when most is there.
        processes: how many there are.
        device: "cpu" or "cuda".
    """

    phases: Mapping[str, Mapping[str, int]]
    processes: int
    device: str

    @property
    def peak_phase(self) -> str:
        """The phase that takes the most."""
        return max(self.phases, key=lambda phase: sum(self.phases[phase].values()))

    @property
    def peak(self) -> int:
        """What it takes."""
        return sum(self.phases[self.peak_phase].values())


def read_network_configs(config: PPOConfig) -> NetworkConfigs:
    """The configs of policy and critic; of a hub id nothing else is downloaded.

    Raises:
        CheckpointError: one of them is missing or cannot be read.
    """
    policy, critic = config.policy or "", config.critic or config.policy or ""
    return NetworkConfigs(
        policy=load_pretrained(AutoConfig, config_directory(policy, "policy"), "policy"),
        critic=load_pretrained(AutoConfig, config_directory(critic, "critic"), "critic", num_labels=1),
    )


def make_plan(config: PPOConfig, networks: NetworkConfigs, *, processes: int, device: str) -> Plan:
    """The memory of one of several processes.

    Args:
        config: of the run.
        networks: from `read_network_configs`.
        processes: how many share the rollouts, and under `sharding` the networks.
        device: "cpu" or "cuda", on which the optimizer takes a step for all parameters at once.

    Raises:
        ConfigError: the networks cannot be simulated.
    """
    rollouts = max(1, config.rollout_batch_size // processes)
    try:
        simulated = simulate(config, networks.policy, networks.critic, rollouts=rollouts)
    except Exception as error:  # an architecture may ask for the data of its tensors, and raise anything
        raise ConfigError(
            f"plan: {networks.policy.model_type} cannot be simulated without data ({one_line(error)}), so its "
            "memory is not known; run plaudit-ppo train --dry-run, and watch the memory of the first iterations"
        ) from error
    shared = _shared(config, processes)
    held = {
        "policy": _weights(config, simulated.policy, processes) // shared["weights"],
        "reference": _reference(config, simulated) // shared["weights"],
        "critic": _weights(config, simulated.critic, processes) // shared["weights"],
        "former policy": _former_policy(config, simulated, device) // shared["weights"],
        "optimizer": _optimizer(config, simulated, shared["optimizer"]),
    }
    phases = {phase: dict(getattr(simulated, phase)) for phase in _PASSES if getattr(simulated, phase)}
    phases["update"]["gradients"] = phases["update"].get("gradients", 0) // shared["gradients"]
    phases["step"] = _step(simulated, shared, device)
    for phase, parts in phases.items():
        parts["gathered"] = _gathered(config, simulated, phase, processes)
    ordered = {phase: {part: {**held, **parts}.get(part, 0) for part in PARTS} for phase, parts in phases.items()}
    return Plan(ordered, processes, device)


def _step(simulated: Simulation, shared: Mapping[str, int], device: str) -> dict[str, int]:
    """Gradients, and what AdamW computes with: two tensors of one parameter on the CPU, one of each on a GPU."""
    networks = (simulated.policy, simulated.critic)
    if device == "cuda":
        temporary = max(network.trained for network in networks) // shared["optimizer"]
    else:
        temporary = 2 * max(network.largest for network in networks) // shared["weights"]
    trained = sum(network.trained for network in networks)
    return {"gradients": trained // shared["gradients"], "temporary": temporary}


def _weights(config: PPOConfig, network: NetworkSize, processes: int) -> int:
    """What a network computes with: in bfloat16 under ZeRO's mixed precision, whose optimizer has the masters."""
    is_mixed = config.sharding == "deepspeed" and config.gathered_precision == "bfloat16" and processes > 1
    return network.weights - (network.trained // 2 if is_mixed else 0)


def _reference(config: PPOConfig, simulated: Simulation) -> int:
    if config.lora_rank:
        return 0
    return simulated.policy.weights // (2 if config.frozen_precision == "bfloat16" else 1)


def _former_policy(config: PPOConfig, simulated: Simulation, device: str) -> int:
    """What is trained of the policy that sampled, kept in the CPU's memory while batches are sampled ahead."""
    return simulated.policy.trained if config.max_staleness and device == "cpu" else 0


def _shared(config: PPOConfig, processes: int) -> dict[str, int]:
    """Over how many processes each kind is spread."""
    stage = {"none": 0, "fsdp": 3}.get(config.sharding)
    if stage is None:
        stage = int(zero_settings(config)["zero_optimization"]["stage"])
    of_stage = {"optimizer": 1, "gradients": 2, "weights": 3}
    return {kind: processes if stage >= first else 1 for kind, first in of_stage.items()}


def _optimizer(config: PPOConfig, simulated: Simulation, shared: int) -> int:
    """AdamW's two moments, in float32; under ZeRO also its own copy of the weights."""
    copies = 3 if config.sharding == "deepspeed" and shared > 1 else 2
    return copies * (simulated.policy.trained + simulated.critic.trained) // shared


def _gathered(config: PPOConfig, simulated: Simulation, phase: str, processes: int) -> int:
    """What a process has for a while that is not its own: whole layers under FSDP and ZeRO, DDP's buckets."""
    if processes == 1:
        return 0
    if config.sharding == "none":
        return simulated.policy.trained + simulated.critic.trained  # the buckets are there from the first update on
    if _shared(config, processes)["weights"] == 1:
        return 0
    if phase == "step":
        return 0
    half = 2 if config.gathered_precision == "bfloat16" else 1
    if phase == "generate":
        return simulated.policy.weights // half
    whole = (_unit(simulated.policy) + _unit(simulated.critic)) // half
    return 2 * whole if phase == "update" else whole  # weights and, in the backward pass, their gradients


def _unit(network: NetworkSize) -> int:
    """Two layers, one computing and the next on its way, and what is in no layer: embeddings and head."""
    return 2 * max(network.layers, default=0) + network.weights - sum(network.layers)


def default_device() -> str:
    """What a run that is started here computes on."""
    return "cuda" if torch.cuda.is_available() and not parse_flag_from_env("ACCELERATE_USE_CPU") else "cpu"
