"""Guards: what stops a run before it goes on learning from nonsense. Each says what to look at.

Pure: the trainer, which calls them, writes the checkpoint.
"""

from plaudit_ppo.errors import ConstantScoresError, KLBudgetError, MaskedShareError, RatioError, RewardModelError

# What rounding alone may make of a ratio of 1; measured: docs/ppo-scale.md, "Precision and memory".
RATIO_TOLERANCE = {"float32": 1e-4, "bfloat16": 0.2}
SAMPLING_TOLERANCE = {"float32": 1e-2, "bfloat16": 0.5}


def check_masked_share(share: float, *, limit: float, failure: str | None) -> None:
    """Too many rollouts without a score.

    Args:
        share: of the rollouts of this iteration.
        limit: max_masked_share.
        failure: what the first failed rollout says.
    """
    if share > limit:
        raise MaskedShareError(
            f"{share:.0%} of the rollouts got no score, limit {limit:.0%} (max_masked_share); first failure: "
            f"{failure}; look at the scorer's log, or raise max_masked_share"
        )


def count_constant(count: int, score_std: float | None, *, num_scores: int) -> int:
    """How many iterations in a row had one and the same score for all of at least two rollouts.

    Args:
        count: before this iteration.
        score_std: of this iteration's scores as the scorer gave them; None where there are none.
        num_scores: how many scores there are.
    """
    if num_scores < 2:
        return count
    return count + 1 if score_std == 0 else 0


def check_constant(count: int, *, limit: int) -> None:
    """A scorer that tells no rollout from another.

    Args:
        count: from `count_constant`.
        limit: max_constant_iterations; 0: none.
    """
    if limit and count >= limit:
        raise ConstantScoresError(
            f"all scores were the same in {count} iterations in a row, limit {limit} (max_constant_iterations), so "
            "there is nothing to learn; look at samples.jsonl for a policy that always writes the same, and at the "
            "reward model: is it the trained one, does its chat template keep the completion?"
        )


def check_reward_model(fingerprint: str | None, *, known: str | None) -> None:
    """Scores of another reward model than before, also after a resume.

    Args:
        fingerprint: of this iteration's scores; None: the scorer does not tell.
        known: of the iterations before; None: there were none, or the scorer does not tell.
    """
    if fingerprint is not None and known is not None and fingerprint != known:
        raise RewardModelError(
            f"the scores come from another reward model than before: fingerprint {fingerprint}, before {known}; serve "
            "the former bundle, or start a new run"
        )


def check_kl(kl: float | None, *, budget: float | None) -> None:
    """A policy too far from the reference.

    Args:
        kl: objective/kl of this iteration, in nats; None where no rollout has a score.
        budget: kl_budget; None: no limit.
    """
    if kl is not None and budget is not None and kl > budget:
        raise KLBudgetError(
            f"objective/kl is {kl:.4g} nats per rollout, limit {budget:.4g} (kl_budget); the checkpoint's policy/ is "
            "the result; look at eval/scores and samples.jsonl for reward hacking; to go on, raise kl_budget or kl_coef"
        )


def check_sampling(error: float, *, tolerance: float) -> None:
    """Generating and training forward that are not the same model.

    Args:
        error: largest |ratio - 1| between them.
        tolerance: sampling_tolerance.
    """
    if not error <= tolerance:  # also when it is NaN
        raise RatioError(
            "the training forward gives the sampled tokens other probabilities than the generating one: |ratio - "
            f"1| is {error:.2e}, limit {tolerance:.2e} (sampling_tolerance); check padding, position ids, "
            "temperature, the key-value cache and the dtype of the policy"
        )


def check_correction(
    *,
    kl: float | None,
    clipped_share: float | None,
    log_ratio: float | None,
    max_kl: float,
    max_clipped_share: float,
    max_log_ratio: float,
) -> None:
    """A sampler too far from the training forward for importance weights to make up for it.

    Args:
        kl: val/sampling_kl, in nats per token; None, as the other two, where no rollout has a score.
        clipped_share: val/sampling_clipped_share.
        log_ratio: val/sampling_log_ratio_max, in nats.
        max_kl: max_sampling_kl.
        max_clipped_share: max_sampling_clipped_share.
        max_log_ratio: max_sampling_log_ratio.
    """
    figures = (
        ("the KL between them, in nats per token,", kl, max_kl, "max_sampling_kl"),
        ("the share of weights cut or masked", clipped_share, max_clipped_share, "max_sampling_clipped_share"),
        ("the largest difference of a logprob, in nats,", log_ratio, max_log_ratio, "max_sampling_log_ratio"),
    )
    for name, figure, limit, setting in figures:
        if figure is not None and not figure <= limit:  # also when it is NaN
            raise RatioError(
                f"the sampler and the training forward are too far apart for sampling_correction: {name} is "
                f"{figure:.4g}, limit {limit:.4g} ({setting}); check that the sampler has the current weights and the "
                "same temperature, tokenizer and dtype"
            )


def check_ratio(error: float, *, tolerance: float) -> None:
    """Before the first step of an iteration the ratio has to be 1.

    Huang et al. 2023, "The N implementation details of RLHF with PPO".

    Args:
        error: largest |ratio - 1| of the first minibatch.
        tolerance: ratio_tolerance.
    """
    if not error <= tolerance:  # also when it is NaN
        raise RatioError(
            f"before the first step of an iteration the probability ratio differs from 1 by {error:.2e}, limit "
            f"{tolerance:.2e} (ratio_tolerance): the policy that trains is not the one that sampled; check that "
            "dropout is off, that temperature, padding and position ids are the same in both passes, that no weights "
            "changed in between, and that no pass computes in a less exact dtype than the setting precision"
        )
