"""What the processes of a run tell each other, and networks as they are trained over them. Knows no PPO."""
