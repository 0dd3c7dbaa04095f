"""PPO for language models against a remote reward model."""
