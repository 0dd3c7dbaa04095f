"""Studies of PPO on the demo's ground: gold reward, RM score and KL of what each way of training ends in."""
