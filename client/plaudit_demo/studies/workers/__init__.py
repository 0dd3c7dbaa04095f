"""One PPO run of a study, by either trainer, in a process of its own."""
