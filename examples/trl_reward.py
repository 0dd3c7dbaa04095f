"""A reward function for TRL's GRPOTrainer and RLOOTrainer that a scoring service computes.

python examples/trl_reward.py http://127.0.0.1:8000

prints the rewards of two completions, as TRL gets them. To train, give the same function to the trainer:

    trainer = GRPOTrainer(model="org/policy", reward_funcs=[reward], train_dataset=prompts)

A completion without a score gives None, which TRL leaves out of the loss.
"""

import asyncio
import sys

from plaudit_client.adapters.trl import reward_function


def main(url: str) -> None:
    """Ask for the rewards as TRL does."""
    reward = reward_function(url, on_failure="mask")
    prompts = ["How do I boil an egg?"] * 2
    completions = [" Seven minutes in boiling water.", " No."]
    rewards = asyncio.run(reward(prompts=prompts, completions=completions, completion_ids=[[1], [2]]))
    for completion, value in zip(completions, rewards, strict=True):
        print(f"{value} {completion!r}")


if __name__ == "__main__":
    main(*sys.argv[1:])
