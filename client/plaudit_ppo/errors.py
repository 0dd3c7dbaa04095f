"""The exceptions of the trainer, and the exit code that the command line gives each."""


class PPOError(Exception):
    """Base of everything that the trainer raises on purpose; its message is one line for the user.

    PPOError
    ├── ConfigError        a setting is unknown, of the wrong type, or out of its limits
    ├── PromptError        the prompt file is missing, malformed, or holds a prompt that does not fit
    ├── CheckpointError    a model directory is missing, or not what it has to be
    ├── MaskedShareError   too many rollouts got no score
    ├── RatioError         the policy that samples is not the policy that trains
    └── DivergenceError    a gradient is not finite
    """

    exit_code = 1


class ConfigError(PPOError):
    """A setting is unknown, of the wrong type, or out of its limits."""

    exit_code = 2


class PromptError(PPOError):
    """The prompt file is missing, malformed, or holds a prompt that does not fit."""

    exit_code = 2


class CheckpointError(PPOError):
    """A model directory is missing, or not what it has to be."""

    exit_code = 2


class MaskedShareError(PPOError):
    """More rollouts than the limit allows got no score."""


class RatioError(PPOError):
    """The probability ratio is not 1 before the first step: sampling and training disagree."""


class DivergenceError(PPOError):
    """A gradient is not finite, so the next step would destroy the model."""
