"""PPO for language models against a remote reward model."""

import os
from typing import TYPE_CHECKING, Any

from plaudit_ppo.config import PPOConfig, load_config
from plaudit_ppo.errors import PPOError

if TYPE_CHECKING:
    from plaudit_ppo.lora import add_lora
    from plaudit_ppo.models import Critic, TrunkCritic, frozen_copy, load_critic, load_policy
    from plaudit_ppo.prompts import Prompt, read_prompts
    from plaudit_ppo.scorers import CombinedScorer, RemoteScorer
    from plaudit_ppo.summary import TrainSummary
    from plaudit_ppo.trainer import PPOTrainer

# Nothing leaves the machine. huggingface_hub, through which TRL reports too, reads this when it is imported.
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"

__all__ = [
    "CombinedScorer",
    "Critic",
    "PPOConfig",
    "PPOError",
    "PPOTrainer",
    "Prompt",
    "RemoteScorer",
    "TrainSummary",
    "TrunkCritic",
    "add_lora",
    "frozen_copy",
    "load_config",
    "load_critic",
    "load_policy",
    "read_prompts",
]

_MODULES = {
    "CombinedScorer": "scorers",
    "Critic": "models",
    "PPOTrainer": "trainer",
    "Prompt": "prompts",
    "RemoteScorer": "scorers",
    "TrainSummary": "summary",
    "TrunkCritic": "models",
    "add_lora": "lora",
    "frozen_copy": "models",
    "load_critic": "models",
    "load_policy": "models",
    "read_prompts": "prompts",
}


def __getattr__(name: str) -> Any:
    """Imports torch and transformers only when something that needs them is asked for."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
