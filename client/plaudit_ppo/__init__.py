"""PPO for language models against a remote reward model."""

import os
from typing import TYPE_CHECKING, Any

from plaudit_ppo.errors import PPOError

if TYPE_CHECKING:
    from plaudit_ppo.config import PPOConfig
    from plaudit_ppo.models.critic import Critic, TrunkCritic, load_critic
    from plaudit_ppo.models.lora import add_lora
    from plaudit_ppo.models.policy import frozen_copy, load_policy
    from plaudit_ppo.rollout.prompts import Prompt, read_prompts
    from plaudit_ppo.runs.summary import TrainSummary
    from plaudit_ppo.scoring.combined import CombinedScorer
    from plaudit_ppo.scoring.remote import RemoteScorer
    from plaudit_ppo.settings_text import load_config
    from plaudit_ppo.trainer import PPOTrainer

# Nothing leaves the machine. huggingface_hub reads this when it is imported.
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["HF_UPDATE_DOWNLOAD_COUNTS"] = "0"  # the same of the package datasets

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
    "CombinedScorer": "scoring.combined",
    "Critic": "models.critic",
    "PPOConfig": "config",
    "PPOTrainer": "trainer",
    "Prompt": "rollout.prompts",
    "RemoteScorer": "scoring.remote",
    "TrainSummary": "runs.summary",
    "TrunkCritic": "models.critic",
    "add_lora": "models.lora",
    "frozen_copy": "models.policy",
    "load_config": "settings_text",
    "load_critic": "models.critic",
    "load_policy": "models.policy",
    "read_prompts": "rollout.prompts",
}


def __getattr__(name: str) -> Any:
    """Imports pydantic, torch and transformers only when something that needs them is asked for."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
