"""The formulas of PPO over tensors, each with its source. Knows no models, rollouts, processes or files."""
