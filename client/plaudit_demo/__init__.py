"""The whole loop on two cores: preferences, reward model, bundle, service, PPO."""
