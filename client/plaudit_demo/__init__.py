"""The whole loop on two cores: preferences, reward model, bundle, service, PPO."""

import os

# Nothing leaves the machine. huggingface_hub, through which TRL reports, reads this when it is imported.
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
