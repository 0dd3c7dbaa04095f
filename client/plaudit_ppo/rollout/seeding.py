"""Random generators as functions of (seed, purpose, counters), so that nothing has to be stored to continue a run."""

import hashlib

import torch


def seeded_generator(device: torch.device, seed: int, purpose: str, *counters: int) -> torch.Generator:
    """A generator that depends on its arguments alone: not on what was drawn before, and not on torch's global state.

    Args:
        device: where the numbers are drawn.
        seed: the run's seed.
        purpose: what the numbers are for; two purposes are independent.
        counters: iteration, epoch and the like.
    """
    digest = hashlib.sha256(repr((seed, purpose, counters)).encode()).digest()
    generator = torch.Generator(device=device)
    generator.manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    return generator
