"""Every setting of a PPO run, with its default, its limits and where it comes from.

Knows nothing of torch: a configuration can be read and refused before anything heavy is imported.
"""

import difflib
import json
import math
import tomllib
from collections.abc import Sequence
from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from typing import Any, get_type_hints

from plaudit_ppo.errors import ConfigError


def _setting(
    default: Any,
    help: str,  # noqa: A002  # argparse's word for the same thing
    *,
    above: float = -math.inf,
    least: float = -math.inf,
    most: float = math.inf,
    choices: Sequence[str] = (),
) -> Any:
    """A dataclass field that knows its help text and its limits (`above` is exclusive, `least` and `most` are not)."""
    limits = {"above": above, "least": least, "most": most, "choices": tuple(choices)}
    return field(default=default, metadata={"help": help, **limits})


# Settings that say where things lie on this machine, and nothing of the run.
PLACES = ("policy", "critic", "prompts", "output", "scorer_urls", "eval_scorer_urls")


@dataclass(frozen=True, kw_only=True)
class PPOConfig:
    """The settings of a run; docs/ppo.md names the source of each default.

    Raises:
        ConfigError: a value has the wrong type or is out of its limits.
    """

    policy: str | None = _setting(None, "directory of the causal LM to train (safetensors, with its tokenizer)")
    critic: str | None = _setting(
        None,
        "directory that the critic starts from, such as a reward model's; none: the policy's weights and a new head",
    )
    prompts: str | None = _setting(None, 'JSONL file, one {"prompt": "..."} or {"messages": [...]} per line')
    scorer_urls: tuple[str, ...] = _setting(
        (),
        "one entry per reward model: its service's address, of replicas separated by commas, then #NAME where the "
        "service has several models",
    )
    eval_scorer_urls: tuple[str, ...] = _setting(
        (), "reward models that score the same rollouts for the log alone, in the same form; their mean is logged"
    )
    output: str = _setting("runs/ppo", "directory of everything that the run leaves")

    iterations: int = _setting(100, "rollout batches, each followed by its update", least=1)
    rollout_batch_size: int = _setting(64, "rollouts per iteration", least=1)
    rollout_micro_batch_size: int = _setting(
        16, "rollouts generated, sent to the scorer and evaluated together", least=1
    )
    max_prompt_tokens: int = _setting(512, "longest prompt, in tokens; a longer one is refused, never cut", least=1)
    max_completion_tokens: int = _setting(128, "a completion without EOS is cut here, in tokens", least=1)
    temperature: float = _setting(0.7, "divides the logits in sampling, reference and training alike", above=0)
    missing_pad: str = _setting("add", "a tokenizer without a pad token, or with pad == EOS", choices=("add", "refuse"))

    send_eos_text: bool = _setting(
        False,
        "send the EOS text after a finished completion to the scorer (not after a chat's: its template ends the turn)",
    )
    scorer_weights: tuple[float, ...] = _setting((), "weight of each reward model; left out: 1 each")
    scorer_combination: str = _setting(
        "sum",
        "how the weighted scores of several reward models become one; mean_minus_std: mean - scorer_std_coef * std",
        choices=("sum", "mean", "min", "mean_minus_std"),
    )
    scorer_std_coef: float = _setting(1.0, 'what disagreement costs under "mean_minus_std"', least=0)
    scorer_timeout_s: float = _setting(180.0, "limit of one call to the scorer with its retries, in seconds", above=0)
    scorer_concurrency: int = _setting(4, "calls to the scorer in flight at once", least=1)
    missing_eos: str = _setting(
        "replace", "what happens to the score of a completion without EOS", choices=("replace", "subtract", "off")
    )
    missing_eos_score: float = _setting(-1.0, 'the score of a completion without EOS under "replace"')
    missing_eos_penalty: float = _setting(
        1.0, 'taken from the score of a completion without EOS under "subtract"', least=0
    )
    score_clip: float | None = _setting(
        None, "scores are cut to ± this, after the rule for a missing EOS; none: not cut", above=0
    )

    kl_coef: float = _setting(0.05, "beta, the weight of the KL penalty in the reward", least=0)
    kl_estimator: str = _setting("k1", "the KL estimate of a token in the reward", choices=("k1", "k3"))
    kl_controller: str = _setting(
        "fixed", "beta stays, or follows the KL towards kl_target", choices=("fixed", "adaptive")
    )
    kl_target: float = _setting(6.0, 'KL that "adaptive" holds, in nats per rollout', above=0)
    kl_horizon: int = _setting(10_000, 'rollouts over which "adaptive" changes beta by about a fifth', least=1)
    kl_loss_coef: float = _setting(
        0.0, "weight of the k2 estimate of the KL in the loss, beside or instead of the penalty in the reward", least=0
    )
    whiten_rewards: bool = _setting(False, "rewards are scaled to variance 1 over the rollout batch, their mean stays")
    gamma: float = _setting(1.0, "discount per token", least=0, most=1)
    gae_lambda: float = _setting(0.95, "lambda of generalized advantage estimation", least=0, most=1)
    whiten_advantages: str = _setting(
        "batch", "advantages are whitened over the rollout batch or over each minibatch", choices=("batch", "minibatch")
    )

    epochs: int = _setting(4, "passes over each rollout batch", least=1)
    num_minibatches: int = _setting(1, "optimizer steps per epoch", least=1)
    micro_batch_size: int = _setting(
        16, "rollouts per forward and backward pass; changes memory and speed, not the result", least=1
    )
    clip_range: float = _setting(0.2, "the probability ratio is clipped to 1 ± this", above=0, most=1)
    value_clip_range: float = _setting(0.2, "a value moves at most this far from the one at sampling", above=0)
    value_coef: float = _setting(0.1, "weight of the value loss", least=0)
    critic_trunk: str = _setting(
        "separate",
        "the critic is a network of its own, or a head on the policy's network",
        choices=("separate", "policy"),
    )
    critic_head_init: str = _setting(
        "normal",
        "a new critic head starts from a normal distribution of std 1/sqrt(d+1), or from zero",
        choices=("normal", "zero"),
    )

    lora_rank: int = _setting(0, "rank of a LoRA adapter that is trained instead of all weights; 0: none", least=0)
    lora_alpha: float = _setting(16.0, "the adapter counts lora_alpha / lora_rank times", above=0)
    learning_rate: float = _setting(3e-6, "of AdamW, for the policy", above=0)
    critic_learning_rate: float | None = _setting(None, "of AdamW, for the critic; none: the policy's", above=0)
    lr_schedule: str = _setting(
        "linear", "the learning rate falls to 0 over the run, or stays", choices=("linear", "constant")
    )
    warmup_iterations: int = _setting(0, "iterations over which the learning rate rises from 0", least=0)
    adam_epsilon: float = _setting(1e-5, "epsilon of AdamW", above=0)
    weight_decay: float = _setting(0.0, "weight decay of AdamW", least=0)
    max_grad_norm: float = _setting(
        1.0, "limit of the gradient's norm, for policy and critic each; 0: no limit", least=0
    )

    precision: str = _setting(
        "float32",
        "what the forward passes compute in; the weights, the losses and the optimizer stay in float32",
        choices=("float32", "bfloat16"),
    )
    gradient_checkpointing: bool = _setting(
        False, "activations inside a layer are computed again, not kept: less memory, more time, the same numbers"
    )
    sharding: str = _setting(
        "none",
        "each process holds the networks whole (DDP), or a shard of them (FSDP, or ZeRO by DeepSpeed); with one, "
        "nothing is shared",
        choices=("none", "fsdp", "deepspeed"),
    )
    deepspeed_config: str | None = _setting(
        None, 'JSON file that says what DeepSpeed does under sharding = "deepspeed"; none: ZeRO, stage 2'
    )

    checkpoint_every: int = _setting(
        10, "iterations from one checkpoint to the next; 0: only at the end, and where a guard stops the run", least=0
    )
    max_checkpoints: int = _setting(2, "checkpoints kept, the newest ones", least=1)
    sample_every: int = _setting(10, "iterations from one table of samples to the next; 0: none", least=0)
    num_samples: int = _setting(8, "rollouts in a table of samples", least=1)
    metrics_port: int = _setting(
        0, "TCP port on which Prometheus finds the run's figures; 0: none", least=0, most=65535
    )
    metrics_host: str = _setting(
        "127.0.0.1", "address of that port; any other than loopback is open to whoever reaches it"
    )

    trackers: tuple[str, ...] = _setting(
        (), 'where each iteration\'s metrics go besides log.jsonl: "tensorboard", "wandb" and others of accelerate'
    )

    max_masked_share: float = _setting(
        0.1, "largest share of rollouts without a score; above it the run stops", least=0, most=1
    )
    max_constant_iterations: int = _setting(
        5, "iterations in a row whose scores are all the same; after that many the run stops; 0: never", least=0
    )
    kl_budget: float | None = _setting(
        None, "objective/kl above which the run stops, in nats per rollout; none: no limit", above=0
    )
    ratio_tolerance: float | None = _setting(
        None,
        "largest |ratio - 1| before the first step of an iteration; none: 1e-4, or 0.2 for precision bfloat16",
        above=0,
    )
    sampling_tolerance: float | None = _setting(
        None,
        "largest |ratio - 1| between the generating and the training forward; none: 0.01, or 0.5 for bfloat16",
        above=0,
    )
    seed: int = _setting(0, "of everything random", least=0)

    def __post_init__(self) -> None:
        hints = get_type_hints(PPOConfig)
        for spec in fields(self):
            object.__setattr__(self, spec.name, _checked(spec, hints[spec.name], getattr(self, spec.name)))
        if self.scorer_weights and len(self.scorer_weights) != len(self.scorer_urls):
            raise ConfigError(
                f"scorer_weights has {len(self.scorer_weights)} entries, scorer_urls {len(self.scorer_urls)}; "
                "give one weight for each reward model, or none"
            )
        if self.critic and self.critic_trunk == "policy":
            raise ConfigError(
                f"critic = {self.critic!r}: a head on the policy's network starts from no directory; leave critic out, "
                'or set critic_trunk = "separate"'
            )
        if self.num_minibatches > self.rollout_batch_size:
            raise ConfigError(
                f"num_minibatches = {self.num_minibatches}, limit {self.rollout_batch_size} (rollout_batch_size); "
                "lower it or raise rollout_batch_size"
            )


def load_config(path: str | Path) -> PPOConfig:
    """A PPOConfig from a TOML file.

    Raises:
        ConfigError: the file is missing, is not TOML, or has an unknown or bad setting; the message names the file.
    """
    try:
        settings = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); --config takes a TOML file") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not a TOML file ({error}); see docs/ppo.md for an example") from error
    known = [spec.name for spec in fields(PPOConfig)]
    for name in settings:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f'did you mean "{near[0]}"?' if near else '"plaudit-ppo train --help" lists them all'
            raise ConfigError(f'{path}: unknown setting "{name}"; {hint}')
    try:
        return PPOConfig(**settings)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def to_toml(config: PPOConfig) -> str:
    """The settings as TOML text that load_config reads back; a setting without a value stays a comment."""
    lines = []
    for spec in fields(config):
        value = getattr(config, spec.name)
        lines.append(f"# {spec.metadata['help']}")
        lines.append(f"# {spec.name} =" if value is None else f"{spec.name} = {_toml_value(value)}")
    return "\n".join(lines) + "\n"


def changed_settings(before: PPOConfig, now: PPOConfig) -> list[str]:
    """Each setting that differs, as "name: before -> now"."""
    values = ((spec.name, getattr(before, spec.name), getattr(now, spec.name)) for spec in fields(PPOConfig))
    return [f"{name}: {shown(old)} -> {shown(new)}" for name, old, new in values if old != new]


def settings_help() -> str:
    """One line per setting: name, default, meaning; for `--help`."""
    lines = []
    for spec in fields(PPOConfig):
        default = shown(spec.default)
        choices = f" (one of {', '.join(spec.metadata['choices'])})" if spec.metadata["choices"] else ""
        lines.append(f"  {spec.name} = {default}\n      {spec.metadata['help']}{choices}")
    return "\n".join(lines)


def _toml_value(value: Any) -> str:
    return repr(value) if type(value) is float else json.dumps(value, ensure_ascii=False)


def shown(value: Any) -> str:
    """A setting's value as it is written in TOML, and "none" where it has none."""
    return "none" if value is None else _toml_value(value)


_KINDS: dict[Any, tuple[str, Any]] = {
    bool: ("true or false", lambda value: type(value) is bool),
    int: ("a whole number", lambda value: type(value) is int),
    float: ("a number", lambda value: type(value) is float and math.isfinite(value)),
    float | None: ("a number", lambda value: value is None or (type(value) is float and math.isfinite(value))),
    str: ("a string", lambda value: type(value) is str and value != ""),
    str | None: ("a string", lambda value: value is None or (type(value) is str and value != "")),
    tuple[str, ...]: ("a list of strings", lambda value: type(value) is tuple and all(type(v) is str for v in value)),
    tuple[float, ...]: (
        "a list of numbers",
        lambda value: type(value) is tuple and all(type(v) is float and math.isfinite(v) for v in value),
    ),
}


def _checked(spec: "Field[Any]", hint: Any, value: Any) -> Any:
    """The value in the field's type, if it is of that type and within the field's limits."""
    if type(value) is int and hint in (float, float | None):
        value = float(value)
    if isinstance(value, (str, Path)) and hint in (str, str | None):
        value = str(value)
    if isinstance(value, (list, tuple)) and hint == tuple[str, ...]:
        value = tuple(value)
    if isinstance(value, (list, tuple)) and hint == tuple[float, ...]:
        value = tuple(float(number) if type(number) is int else number for number in value)
    kind, accepts = _KINDS[hint]
    rules, remedy = spec.metadata, f"the default is {shown(spec.default)}"
    if not accepts(value):
        raise ConfigError(f"{spec.name} = {value!r}: has to be {kind}; {remedy}")
    if rules["choices"] and value not in rules["choices"]:
        raise ConfigError(f"{spec.name} = {value!r}: has to be one of {', '.join(rules['choices'])}; {remedy}")
    if isinstance(value, (int, float)) and not (rules["least"] <= value <= rules["most"] and value > rules["above"]):
        raise ConfigError(
            f"{spec.name} = {value!r}, limit {_limits(rules['above'], rules['least'], rules['most'])}; {remedy}"
        )
    return value


def _limits(above: float, least: float, most: float) -> str:
    lower = f"above {above:g}" if math.isfinite(above) else f"at least {least:g}"
    return f"{lower} and at most {most:g}" if math.isfinite(most) else lower
