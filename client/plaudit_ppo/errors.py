"""The exceptions of the trainer, and the exit code that the command line gives each."""


def one_line(error: Exception) -> str:
    """An exception of others, in one line."""
    reason = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return reason if isinstance(error, OSError) and reason else f"{type(error).__name__}: {reason}".removesuffix(": ")


class PPOError(Exception):
    """Base of everything that the trainer raises on purpose; its message is one line for the user.

    The tree::

        PPOError
        ├── ConfigError              a setting is unknown, of a wrong type, or out of its limits; the output is taken
        ├── PromptError              the prompt file is missing or malformed, or a prompt is too long
        ├── CheckpointError          a model directory or a checkpoint is missing, damaged or of the wrong kind
        ├── OutputError              a checkpoint or the result cannot be written
        ├── EngineError              an engine that samples is dead, hangs, or has other weights than the policy's
        └── GuardError               a guard stopped the run, and left a checkpoint
            ├── MaskedShareError     too many rollouts got no score
            ├── ConstantScoresError  all scores were equal, several iterations in a row
            ├── RewardModelError     the reward model has changed since the start of the run
            ├── KLBudgetError        the policy is farther from the reference than allowed
            ├── RatioError           the policy that samples is not the policy that trains
            └── DivergenceError      a loss, a gradient or the policy's probabilities are not finite
    """

    exit_code = 1


class ConfigError(PPOError):
    """A setting is unknown, of the wrong type, or out of its limits."""

    exit_code = 2


class PromptError(PPOError):
    """The prompt file is missing or malformed, or a prompt is too long."""

    exit_code = 2


class CheckpointError(PPOError):
    """A model directory or a checkpoint is missing, damaged or of the wrong kind."""

    exit_code = 2


class OutputError(PPOError):
    """A checkpoint or the result cannot be written, such as on a full disk."""


class EngineError(PPOError):
    """An engine that samples is dead, hangs, or has other weights than the policy's; the trainer left a checkpoint."""


class GuardError(PPOError):
    """A guard stopped the run; the trainer has left a checkpoint, which the message names."""


class MaskedShareError(GuardError):
    """More rollouts than the limit allows got no score."""


class ConstantScoresError(GuardError):
    """All scores were the same, several iterations in a row: there is nothing to learn."""


class RewardModelError(GuardError):
    """The scores come from another reward model than at the run's start."""


class KLBudgetError(GuardError):
    """The policy is farther from the reference than the setting allows."""


class RatioError(GuardError):
    """The probability ratio is not 1 before the first step: sampling and training disagree."""


class DivergenceError(GuardError):
    """A loss, a gradient or the policy's probabilities are not finite, so the next step would destroy the model."""
