"""The study of process rewards: TRL trains a process reward model, and PPO rewards each step of a completion by it."""
