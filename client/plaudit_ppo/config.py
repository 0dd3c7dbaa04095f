"""Every setting of a PPO run, with its default, its limits and where it comes from.

Knows nothing of torch: a configuration can be refused before anything heavy is imported. Its text is in
`settings_text`.
"""

import difflib
import json
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, ModelWrapValidatorHandler, TypeAdapter, ValidationError, model_validator
from pydantic.dataclasses import dataclass
from pydantic_core import ArgsKwargs, ErrorDetails

from plaudit_client.errors import InvalidArgument
from plaudit_client.settings import resolve_urls
from plaudit_ppo.errors import ConfigError

Count = Annotated[int, Field(ge=1)]
CountOrZero = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Text = Annotated[str, Field(min_length=1)]

_MIN_ENGINE_TEMPERATURE = 0.01  # vLLM's own

_STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)


# Settings that say where things lie on this machine, and nothing of the run.
PLACES = (
    "policy",
    "critic",
    "prompts",
    "eval_prompts",
    "output",
    "scorer_urls",
    "eval_scorer_urls",
    "engine_urls",
    "engine_sync_dir",
    "engine_key_file",
)


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class PPOConfig:
    """The settings of a run; docs/ppo-details.md names the source of each default.

    A setting is one declaration: type with limits, default, and the text that `--help` shows. An int may stand for a
    float, a list for a tuple, a Path for a string; nothing else is converted.

    Raises:
        ConfigError: a setting is unknown, of the wrong type, or out of its limits; or two do not go together.
    """

    policy: Text | None = None
    """the causal LM to train (safetensors, with its tokenizer): its directory, or a hub id, org/name@revision"""
    critic: Text | None = None
    """what the critic starts from, such as a reward model: its directory or hub id; none: the policy's weights and a
    new head"""
    builtin_class: bool = False
    """transformers' classes are right, also where the config of policy or critic names code of its own (auto_map)"""
    prompts: tuple[Text, ...] = ()
    """sources of prompts, or one: a file of JSONL or parquet or a directory of them, PATH[#SPLIT], or a data set of the
    hub, org/name[@revision][#[SUBSET/]SPLIT]; rows in TRL's forms"""
    prompt_weights: tuple[Positive, ...] = ()
    """share of the rollouts that each source of prompts gets; left out: all prompts alike"""
    long_prompts: Literal["refuse", "drop"] = "refuse"
    """a prompt of more than max_prompt_tokens ends the run at its start, or is left out and counted"""
    scorer_urls: tuple[str, ...] = ()
    """one entry per reward model: its service's address, of replicas separated by commas, then #NAME where the
    service has several models; or openrlhf+URL of a service of OpenRLHF's form"""
    eval_scorer_urls: tuple[str, ...] = ()
    """reward models that score the same rollouts for the log alone, in the same form; their mean is logged"""
    output: Text = "runs/ppo"
    """directory of everything that the run leaves"""

    iterations: Count = 100
    """rollout batches, each followed by its update"""
    rollout_batch_size: Count = 64
    """rollouts per iteration"""
    rollout_micro_batch_size: Count = 16
    """rollouts generated, sent to the scorer and evaluated together"""
    samples_per_prompt: Count = 1
    """completions of each prompt, all of them counted by rollout_batch_size and sent to the scorer as one group"""
    max_prompt_tokens: Count = 512
    """longest prompt, in tokens; a longer one is never cut (long_prompts)"""
    max_completion_tokens: Count = 128
    """a completion without EOS is cut here, in tokens"""
    stop: tuple[Text, ...] = ()
    """texts that end a completion, as EOS does; the scorer gets it without them"""
    temperature: Positive = 0.7
    """divides the logits in sampling, reference and training alike"""
    missing_pad: Literal["add", "refuse"] = "add"
    """a tokenizer without a pad token, or with pad == EOS"""

    sampler: Literal["local", "vllm"] = "local"
    """what completes prompts: the policy in this process, or vLLM servers at engine_urls that are given its weights"""
    engine_urls: tuple[str, ...] = ()
    """base URLs of vLLM servers, such as "http://127.0.0.1:8001"; rollouts are dealt to them in turn"""
    engine_sync: Literal["auto", "weights", "adapter"] = "auto"
    """what an engine is given before each iteration: all weights, or the LoRA adapter; auto: the adapter if there is
    one"""
    engine_sync_dir: Text | None = None
    """directory of these weights, which trainer and engines see at the same path; none: engine/ in output"""
    engine_key_file: Text | None = None
    """file with the key that engines ask for (their --api-key); none: they ask for none"""
    engine_timeout_s: Positive = 600.0
    """limit of one request to an engine, in seconds; a completion or a reload has to be done by then"""
    engine_concurrency: Count = 256
    """requests in flight to each engine, from each process"""
    max_staleness: Annotated[int, Field(ge=0, le=1)] = 0
    """1: engines sample the next rollout batch while this one is learned from, by the policy before that; needs
    sampling_correction. 0: each batch is sampled by the policy that learns from it"""

    label_column: Text | None = None
    """column of the prompts' rows that a service of OpenRLHF's form gets as label; none: all of them, as an object"""
    send_eos_text: bool = False
    """send the EOS text after a finished completion to the scorer (not after a chat's: its template ends the turn)"""
    scorer_weights: tuple[float, ...] = ()
    """weight of each reward model; left out: 1 each"""
    scorer_combination: Literal["sum", "mean", "min", "mean_minus_std"] = "sum"
    """how the weighted scores of several reward models become one; mean_minus_std: mean - scorer_std_coef * std"""
    scorer_std_coef: NotNegative = 1.0
    """what disagreement costs under "mean_minus_std" """
    reward_along: Literal["off", "steps"] = "off"
    """"steps": each step of a completion is rewarded by its score, at the policy's token that ends it, in place of the
    one score at the end; for a reward model of steps"""
    step_separator: Annotated[str, Field(min_length=1)] = "\n\n"
    """what separates two steps of a completion under reward_along = "steps" """
    scorer_timeout_s: Positive = 180.0
    """limit of one call to the scorer with its retries, in seconds"""
    scorer_concurrency: Count = 4
    """calls to the scorer in flight at once"""
    missing_eos: Literal["replace", "subtract", "off"] = "replace"
    """what happens to the score of a completion without EOS"""
    missing_eos_score: float = -1.0
    """the score of a completion without EOS under "replace" """
    missing_eos_penalty: NotNegative = 1.0
    """taken from the score of a completion without EOS under "subtract" """
    score_clip: Positive | None = None
    """scores are cut to ± this, after the rule for a missing EOS; none: not cut"""
    overlong_buffer_tokens: CountOrZero = 0
    """last tokens before max_completion_tokens over which a completion's score falls by overlong_penalty; 0: none"""
    overlong_penalty: Positive = 1.0
    """what a completion of max_completion_tokens loses of its score under overlong_buffer_tokens"""

    kl_coef: NotNegative = 0.05
    """beta, the weight of the KL penalty in the reward"""
    kl_estimator: Literal["k1", "k3"] = "k1"
    """the KL estimate of a token in the reward"""
    kl_controller: Literal["fixed", "adaptive"] = "fixed"
    """beta stays, or follows the KL towards kl_target"""
    kl_target: Positive = 6.0
    """KL that "adaptive" holds, in nats per rollout"""
    kl_horizon: Count = 10_000
    """rollouts over which "adaptive" changes beta by about a fifth"""
    kl_loss_coef: NotNegative = 0.0
    """weight of the k2 estimate of the KL in the loss, beside or instead of the penalty in the reward"""
    whiten_rewards: bool = False
    """rewards are scaled to variance 1 over the rollout batch, their mean stays"""
    gamma: Share = 1.0
    """discount per token"""
    gae_lambda: Share = 0.95
    """lambda of generalized advantage estimation"""
    whiten_advantages: Literal["batch", "minibatch"] = "batch"
    """advantages are whitened over the rollout batch or over each minibatch"""

    epochs: Count = 4
    """passes over each rollout batch"""
    num_minibatches: Count = 1
    """optimizer steps per epoch"""
    micro_batch_size: Count = 16
    """rollouts per forward and backward pass; changes memory and speed, not the result"""
    clip_range: Annotated[float, Field(gt=0, le=1)] = 0.2
    """the probability ratio is clipped to 1 ± this"""
    clip_range_high: Positive | None = None
    """the ratio's upper clip is 1 + this; none: 1 + clip_range"""
    dual_clip: Annotated[float, Field(gt=1)] | None = None
    """the policy loss of a token with a negative advantage is at most this times its size; none: no limit"""
    entropy_coef: NotNegative = 0.0
    """weight of the policy's entropy, a bonus in the loss"""
    sampling_correction: Literal["none", "token_truncate", "sequence_mask"] = "none"
    """importance weights on the policy loss for a sampler whose logprobs differ from the training forward's: cut per
    token, or over a whole completion, which is masked beyond sampling_correction_max"""
    sampling_correction_max: Annotated[float, Field(ge=1)] = 2.0
    """largest importance weight"""
    value_clip_range: Positive = 0.2
    """a value moves at most this far from the one at sampling"""
    value_coef: NotNegative = 0.1
    """weight of the value loss"""
    critic_warmup_iterations: CountOrZero = 0
    """iterations at the start in which the critic alone is trained"""
    critic_trunk: Literal["separate", "policy"] = "separate"
    """the critic is a network of its own, or a head on the policy's network"""
    critic_head_init: Literal["normal", "zero"] = "normal"
    """a new critic head starts from a normal distribution of std 1/sqrt(d+1), or from zero"""

    lora_rank: CountOrZero = 0
    """rank of a LoRA adapter that is trained instead of all weights; 0: none"""
    lora_alpha: Positive = 16.0
    """LoRA scaling is lora_alpha / lora_rank"""
    learning_rate: Positive = 3e-6
    """of AdamW, for the policy"""
    critic_learning_rate: Positive | None = None
    """of AdamW, for the critic; none: the policy's"""
    lr_schedule: Literal["linear", "constant"] = "linear"
    """the learning rate falls to 0 over the run, or stays"""
    warmup_iterations: CountOrZero = 0
    """iterations over which the learning rate rises from 0"""
    adam_epsilon: Positive = 1e-5
    """epsilon of AdamW"""
    weight_decay: NotNegative = 0.0
    """weight decay of AdamW"""
    max_grad_norm: NotNegative = 1.0
    """limit of the gradient's norm, for policy and critic each; 0: no limit"""

    precision: Literal["float32", "bfloat16"] = "float32"
    """what the forward passes compute in; the weights, the losses and the optimizer stay in float32"""
    frozen_precision: Literal["float32", "bfloat16"] = "float32"
    """what the weights that are not trained are kept in: the reference's and, with lora_rank, the policy's"""
    gathered_precision: Literal["float32", "bfloat16"] = "float32"
    """what weights that are trained are gathered in under sharding, and computed with; what the optimizer changes stays
    in float32"""
    gradient_checkpointing: bool = False
    """activations inside a layer are computed again, not kept: less memory, more time, the same numbers"""
    logits_chunk_tokens: CountOrZero = 0
    """completion tokens of a micro-batch whose logits are there at once, computed again for the gradient: less memory,
    the same numbers; 0: all"""
    sharding: Literal["none", "fsdp", "deepspeed"] = "none"
    """each process holds the networks whole (DDP), or a shard of them (FSDP, or ZeRO by DeepSpeed); with one,
    nothing is shared"""
    deepspeed_config: Text | None = None
    """JSON file that says what DeepSpeed does under sharding = "deepspeed"; none: ZeRO, stage 2"""

    checkpoint_every: CountOrZero = 10
    """iterations from one checkpoint to the next; 0: only at the end, and where a guard stops the run"""
    max_checkpoints: Count = 2
    """checkpoints kept, the newest ones"""
    sample_every: CountOrZero = 10
    """iterations from one table of samples to the next; 0: none"""
    num_samples: Count = 8
    """rollouts in a table of samples"""
    eval_prompts: tuple[Text, ...] = ()
    """sources of held-out prompts, as in prompts; the policy completes them and is never trained on them"""
    eval_every: Count = 10
    """iterations from one evaluation on the held-out prompts to the next; the start and the end are evaluated, too"""
    eval_decoding: Literal["greedy", "sampled"] = "greedy"
    """held-out completions are of the likeliest tokens, or sampled at temperature, with the same random numbers each
    time"""
    max_eval_prompts: Count = 256
    """held-out prompts that are used, evenly spread over the sources"""
    metrics_port: Annotated[int, Field(ge=0, le=65535)] = 0
    """TCP port on which Prometheus finds the run's figures; 0: none"""
    metrics_host: Text = "127.0.0.1"
    """address of that port; any other than loopback is open to whoever reaches it"""

    trackers: tuple[str, ...] = ()
    """where each iteration's metrics go besides log.jsonl: "tensorboard", "wandb" and others of accelerate"""

    max_masked_share: Share = 0.1
    """largest share of rollouts without a score; above it the run stops"""
    max_constant_iterations: CountOrZero = 5
    """iterations in a row whose scores are all the same; after that many the run stops; 0: never"""
    kl_budget: Positive | None = None
    """objective/kl above which the run stops, in nats per rollout; none: no limit"""
    ratio_tolerance: Positive | None = None
    """largest |ratio - 1| before the first step of an iteration; none: 1e-4, or 0.2 for precision bfloat16"""
    sampling_tolerance: Positive | None = None
    """largest |ratio - 1| between generating and training forward, without sampling_correction; none: 0.01, or 0.5 for
    bfloat16"""
    max_sampling_kl: Positive = 0.05
    """under sampling_correction: KL from sampler to training forward above which the run stops, in nats per token"""
    max_sampling_clipped_share: Share = 0.2
    """under sampling_correction: largest share of tokens whose weight was cut, or whose completion is masked"""
    max_sampling_log_ratio: Positive = 5.0
    """under sampling_correction: largest difference of a token's two logprobs, in nats"""
    seed: CountOrZero = 0
    """random seed"""

    @model_validator(mode="wrap")
    @classmethod
    def _refuse_in_one_line(cls, given: ArgsKwargs, check: ModelWrapValidatorHandler["PPOConfig"]) -> "PPOConfig":
        if given.args:
            raise TypeError("a PPOConfig takes its settings by name")
        settings = {name: _plain(name, value) for name, value in (given.kwargs or {}).items()}
        try:
            return check(ArgsKwargs((), settings))
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            name = str(first["loc"][0])
            raise ConfigError(_refusal(name, settings.get(name), first)) from error

    def __post_init__(self) -> None:
        if self.scorer_weights and len(self.scorer_weights) != len(self.scorer_urls):
            raise ConfigError(
                f"scorer_weights has {len(self.scorer_weights)} entries, scorer_urls {len(self.scorer_urls)}; "
                "give one weight for each reward model, or none"
            )
        if self.prompt_weights and len(self.prompt_weights) != len(self.prompts):
            raise ConfigError(
                f"prompt_weights has {len(self.prompt_weights)} entries, prompts {len(self.prompts)}; give one weight "
                "for each source, or none"
            )
        if self.critic and self.critic_trunk == "policy":
            raise ConfigError(
                f"critic = {self.critic!r}: a head on the policy's network starts from no directory; leave critic out, "
                'or set critic_trunk = "separate"'
            )
        self._check_engines()
        if self.sampling_correction != "none" and self.sampling_tolerance is not None:
            raise ConfigError(
                f"sampling_tolerance = {self.sampling_tolerance:g} is not judged under sampling_correction = "
                f'"{self.sampling_correction}"; leave it out, and set max_sampling_kl, max_sampling_clipped_share and '
                "max_sampling_log_ratio instead"
            )
        if self.overlong_buffer_tokens > self.max_completion_tokens:
            raise ConfigError(
                f"overlong_buffer_tokens = {self.overlong_buffer_tokens}, limit {self.max_completion_tokens} "
                "(max_completion_tokens); lower it or raise max_completion_tokens"
            )
        self._check_critic_warmup()
        self._check_precision()
        if self.reward_along == "steps" and (len(self.scorer_urls) > 1 or self.scorer_weights or self.send_eos_text):
            raise ConfigError(
                'reward_along = "steps" takes one reward model of steps as it is; leave out scorer_weights, '
                "send_eos_text and further scorer_urls"
            )
        for name in ("rollout_batch_size", "rollout_micro_batch_size"):
            if getattr(self, name) % self.samples_per_prompt:
                raise ConfigError(
                    f"{name} = {getattr(self, name)} is no multiple of samples_per_prompt = {self.samples_per_prompt}, "
                    "and the completions of a prompt are sampled and scored together; give a multiple"
                )
        if self.num_minibatches > self.rollout_batch_size:
            raise ConfigError(
                f"num_minibatches = {self.num_minibatches}, limit {self.rollout_batch_size} (rollout_batch_size); "
                "lower it or raise rollout_batch_size"
            )

    def _check_engines(self) -> None:
        if self.max_staleness:
            self._check_staleness()
        if self.sampler == "local":
            if self.engine_urls:
                raise ConfigError('engine_urls are set and sampler = "local"; set sampler = "vllm", or leave them out')
            return
        if not self.engine_urls:
            raise ConfigError('sampler = "vllm" and no engine_urls; give the base URL of each vLLM server')
        if any("@" in url for url in self.engine_urls):  # not shown, since messages end up in logs
            raise ConfigError("engine_urls: an address has a user or password in it; give the key in engine_key_file")
        try:
            urls = resolve_urls(self.engine_urls)
        except InvalidArgument as error:
            raise ConfigError(f"engine_urls: {error}") from error
        if urls != self.engine_urls or len(set(urls)) < len(urls):
            raise ConfigError(
                "engine_urls: an address has a slash or spaces at an end, is empty, or stands there twice; write each "
                "once, such as http://127.0.0.1:8001"
            )
        if self.engine_sync == "adapter" and not self.lora_rank:
            raise ConfigError(
                'engine_sync = "adapter" and lora_rank = 0: there is no adapter; set lora_rank, or "auto"'
            )
        if self.temperature < _MIN_ENGINE_TEMPERATURE:
            raise ConfigError(
                f"temperature = {self.temperature!r}, limit at least {_MIN_ENGINE_TEMPERATURE:g} with "
                'sampler = "vllm", which raises what is lower; raise it, or sample locally'
            )

    def _check_staleness(self) -> None:
        if self.sampler == "local":
            raise ConfigError(
                'max_staleness = 1 and sampler = "local": the policy that samples is the one that learns, so nothing '
                'can overlap; set sampler = "vllm", or max_staleness = 0'
            )
        if self.sampling_correction == "none":
            raise ConfigError(
                'max_staleness = 1 and sampling_correction = "none": an engine\'s logprobs of an earlier policy are '
                'not judged as tightly as those of the current one; set "token_truncate", or max_staleness = 0'
            )
        if self.sharding == "deepspeed":
            raise ConfigError(
                'max_staleness = 1 and sharding = "deepspeed": DeepSpeed keeps copies of the weights of its own, which '
                'cannot change places with those of the policy that sampled; set sharding = "fsdp" or "none"'
            )

    def _check_precision(self) -> None:
        if self.frozen_precision == "bfloat16" and self.lora_rank and self.precision != "bfloat16":
            raise ConfigError(
                'frozen_precision = "bfloat16" with lora_rank: the policy then computes in bfloat16; set precision = '
                '"bfloat16" too, which says how exact its numbers have to be'
            )
        if self.gathered_precision == "bfloat16" and (self.precision == "float32" or self.sharding == "none"):
            raise ConfigError(
                'gathered_precision = "bfloat16" is for precision = "bfloat16" and sharding = "fsdp" or "deepspeed"; '
                "set both, or leave it out"
            )

    def _check_critic_warmup(self) -> None:
        warmup = self.critic_warmup_iterations
        if warmup >= self.iterations:
            raise ConfigError(
                f"critic_warmup_iterations = {warmup}, limit {self.iterations - 1} (below iterations), or the policy "
                "would never be trained; lower it or raise iterations"
            )
        if warmup and self.critic_trunk == "policy":
            raise ConfigError(
                f"critic_warmup_iterations = {warmup}: a head on the policy's network cannot be trained without the "
                'policy; set it to 0, or critic_trunk = "separate"'
            )
        if warmup and not self.value_coef:
            raise ConfigError(
                f"critic_warmup_iterations = {warmup}: with value_coef = 0 the critic learns nothing; set one of them "
                "back"
            )


def shown(value: Any) -> str:
    """A setting's value as it is written in TOML, and "none" where it has none."""
    if value is None:
        return "none"
    return repr(value) if type(value) is float else json.dumps(value, ensure_ascii=False)


@cache
def setting_schemas() -> dict[str, dict[str, Any]]:
    """The JSON Schema of each setting: type, limits, choices, and its text as `description`."""
    schemas: dict[str, dict[str, Any]] = TypeAdapter(PPOConfig).json_schema()["properties"]
    for schema in schemas.values():
        schema["description"] = " ".join(schema["description"].split())
        schema.update(schema.get("anyOf", [{}])[0])  # what a setting is that may also be left out
    return schemas


def _plain(name: str, value: Any) -> Any:
    """The value, in the type that a setting has where TOML or Python have another for it."""
    if isinstance(value, Path):
        value = str(value)
    if isinstance(value, str) and name in _ONE_OR_SEVERAL:
        return (value,)
    return tuple(value) if isinstance(value, list) else value


# Lists for which one entry may stand alone.
_ONE_OR_SEVERAL = ("prompts", "eval_prompts", "stop")

_TYPE_WORDS = {"boolean": "true or false", "integer": "a whole number", "number": "a number", "string": "a string"}
_LIMIT_WORDS = {"exclusiveMinimum": "above", "minimum": "at least", "maximum": "at most"}


# Settings that others have, and why there are none here.
_REFUSED = dict.fromkeys(
    ("top_p", "top_k", "min_p"),
    "PPO's ratio is that of the whole distribution, in which a token that sampling left out has a probability; lower "
    "temperature instead",
)


def describe_unknown(name: str) -> str:
    """One line on a setting that there is not, with the one of the closest name."""
    if name in _REFUSED:
        return f'no setting "{name}": {_REFUSED[name]}'
    near = difflib.get_close_matches(name, setting_schemas(), n=1)
    hint = f'did you mean "{near[0]}"?' if near else '"plaudit-ppo train --help" lists them all'
    return f'unknown setting "{name}"; {hint}'


def _refusal(name: str, value: Any, error: ErrorDetails) -> str:
    """One line on what pydantic refused: which setting, its value, what it has to be, and the default."""
    if name not in setting_schemas():
        return describe_unknown(name)
    schema, default = setting_schemas()[name], shown(PPOConfig.__dataclass_fields__[name].default)
    if error["type"].startswith(("greater", "less")):
        value = float(value) if schema["type"] == "number" else value
        limits = " and ".join(f"{words} {schema[limit]:g}" for limit, words in _LIMIT_WORDS.items() if limit in schema)
        return f"{name} = {value!r}, limit {limits}; the default is {default}"
    if "enum" in schema:
        kind = f"one of {', '.join(schema['enum'])}"
    else:
        kind = f"a list of {schema['items']['type']}s" if "items" in schema else _TYPE_WORDS[schema["type"]]
    return f"{name} = {value!r}: has to be {kind}; the default is {default}"
