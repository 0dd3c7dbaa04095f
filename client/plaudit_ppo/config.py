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
    """checkpoint that the critic starts from, such as a reward model: its directory or hub id; none: the policy's
    weights and a new head"""
    builtin_class: bool = False
    """use transformers' own class even if the config of policy or critic names custom code (auto_map); custom code is
    never run"""
    prompts: tuple[Text, ...] = ()
    """one or more sources of prompts: a JSONL or parquet file or a directory of them, PATH[#SPLIT], or a data set of
    the hub, org/name[@revision][#[SUBSET/]SPLIT]; rows in TRL's formats"""
    prompt_weights: tuple[Positive, ...] = ()
    """relative share of the rollouts for each source of prompts; left out: all prompts are used equally often"""
    long_prompts: Literal["refuse", "drop"] = "refuse"
    """what happens to a prompt of more than max_prompt_tokens: refuse ends the run at its start, drop leaves the prompt
    out and counts it"""
    scorer_urls: tuple[str, ...] = ()
    """one entry per reward model: the URL of its service, or the URLs of its replicas separated by commas, then #NAME
    if the service has several models; openrlhf+URL for a server with OpenRLHF's interface"""
    eval_scorer_urls: tuple[str, ...] = ()
    """reward models that score the same rollouts only for the log, given as in scorer_urls; the mean of their scores is
    logged"""
    output: Text = "runs/ppo"
    """directory for all files of the run"""

    iterations: Count = 100
    """number of iterations; each one samples a rollout batch and trains on it"""
    rollout_batch_size: Count = 64
    """rollouts per iteration"""
    rollout_micro_batch_size: Count = 16
    """rollouts generated, sent to the scorer and evaluated together"""
    samples_per_prompt: Count = 1
    """completions of each prompt; rollout_batch_size counts all of them, and the scorer gets them as one group"""
    max_prompt_tokens: Count = 512
    """longest prompt, in tokens; a longer one is never cut, see long_prompts"""
    max_completion_tokens: Count = 128
    """longest completion, in tokens; a completion without EOS is cut here"""
    stop: tuple[Text, ...] = ()
    """texts that end a completion, as EOS does; the scorer gets the completion without them"""
    temperature: Positive = 0.7
    """sampling temperature: divides the logits of policy and reference, in sampling and in training"""
    missing_pad: Literal["add", "refuse"] = "add"
    """for a tokenizer without a pad token, or with pad == EOS: add a pad token, or refuse to start"""

    sampler: Literal["local", "vllm"] = "local"
    """what samples the completions: the policy in this process, or vLLM servers at engine_urls that get the policy's
    weights"""
    engine_urls: tuple[str, ...] = ()
    """base URLs of vLLM servers, such as "http://127.0.0.1:8001"; prompts are sent to the servers in turn"""
    engine_sync: Literal["auto", "weights", "adapter"] = "auto"
    """what an engine gets before each iteration: all weights, or only the LoRA adapter; auto: the adapter if there is
    one"""
    engine_sync_dir: Text | None = None
    """directory through which engines get the weights; trainer and engines see it at the same path; none: engine/ in
    output"""
    engine_key_file: Text | None = None
    """file with the API key of the engines (their --api-key); none: the engines need no key"""
    engine_timeout_s: Positive = 600.0
    """time limit of one request to an engine, in seconds; it covers a completion and a load of new weights"""
    engine_concurrency: Count = 256
    """requests in flight to each engine, from each process"""
    max_staleness: Annotated[int, Field(ge=0, le=1)] = 0
    """0: each rollout batch is sampled by the policy that learns from it. 1: engines sample the next rollout batch
    while the trainer learns from this one, so each batch comes from the policy before the last update; needs
    sampling_correction"""

    label_column: Text | None = None
    """column of the prompts' rows that a server with OpenRLHF's interface gets as label; none: all other columns, as an
    object"""
    send_eos_text: bool = False
    """send the EOS text after a finished completion to the scorer; chats get none, because their template ends the
    turn"""
    scorer_weights: tuple[float, ...] = ()
    """weight of each reward model's score; left out: 1 for each"""
    scorer_combination: Literal["sum", "mean", "min", "mean_minus_std"] = "sum"
    """how the weighted scores of several reward models become one score; mean_minus_std: mean - scorer_std_coef *
    std"""
    scorer_std_coef: NotNegative = 1.0
    """weight of the standard deviation between the reward models, under scorer_combination = "mean_minus_std" """
    reward_along: Literal["off", "steps"] = "off"
    """"steps": each step of a completion gets its own score as reward, at the token that ends the step, instead of one
    score at the end; for process reward models"""
    step_separator: Annotated[str, Field(min_length=1)] = "\n\n"
    """text between two steps of a completion, under reward_along = "steps" """
    scorer_timeout_s: Positive = 180.0
    """time limit of one call to the scorer, retries included, in seconds"""
    scorer_concurrency: Count = 4
    """largest number of calls to the scorer at the same time"""
    missing_eos: Literal["replace", "subtract", "off"] = "replace"
    """what happens to the score of a completion without EOS: replace it by missing_eos_score, subtract
    missing_eos_penalty, or nothing (off)"""
    missing_eos_score: float = -1.0
    """score of a completion without EOS, under missing_eos = "replace" """
    missing_eos_penalty: NotNegative = 1.0
    """subtracted from the score of a completion without EOS, under missing_eos = "subtract" """
    score_clip: Positive | None = None
    """scores are clipped to ± this, after the rule for a missing EOS; none: not clipped"""
    overlong_buffer_tokens: CountOrZero = 0
    """number of tokens before max_completion_tokens over which a completion's score falls by up to overlong_penalty; 0:
    no penalty for length"""
    overlong_penalty: Positive = 1.0
    """penalty for a completion of max_completion_tokens, under overlong_buffer_tokens"""

    kl_coef: NotNegative = 0.05
    """beta, the weight of the KL penalty in the reward"""
    kl_estimator: Literal["k1", "k3"] = "k1"
    """estimator of the KL of a token in the reward"""
    kl_controller: Literal["fixed", "adaptive"] = "fixed"
    """fixed: beta stays the same; adaptive: beta changes so that the KL approaches kl_target"""
    kl_target: Positive = 6.0
    """KL that kl_controller = "adaptive" aims at, in nats per rollout"""
    kl_horizon: Count = 10_000
    """rollouts over which kl_controller = "adaptive" changes beta by about a fifth"""
    kl_loss_coef: NotNegative = 0.0
    """weight of the k2 estimate of the KL in the loss, in addition to the penalty in the reward or instead of it"""
    whiten_rewards: bool = False
    """scale the rewards to variance 1 over the rollout batch; their mean stays"""
    gamma: Share = 1.0
    """discount factor per token"""
    gae_lambda: Share = 0.95
    """lambda of generalized advantage estimation"""
    whiten_advantages: Literal["batch", "minibatch"] = "batch"
    """whiten the advantages over the rollout batch, or over each minibatch"""

    epochs: Count = 4
    """passes over each rollout batch"""
    num_minibatches: Count = 1
    """minibatches, and so optimizer steps, per epoch"""
    micro_batch_size: Count = 16
    """rollouts per forward and backward pass; changes memory and speed, not the result"""
    clip_range: Annotated[float, Field(gt=0, le=1)] = 0.2
    """the probability ratio is clipped to 1 ± this"""
    clip_range_high: Positive | None = None
    """the probability ratio is clipped above at 1 + this; none: 1 + clip_range"""
    dual_clip: Annotated[float, Field(gt=1)] | None = None
    """limit of the policy loss of a token with a negative advantage, as a multiple of the advantage's size; none: no
    limit"""
    entropy_coef: NotNegative = 0.0
    """weight of the policy's entropy, which is a bonus in the loss"""
    sampling_correction: Literal["none", "token_truncate", "sequence_mask"] = "none"
    """importance weights on the policy loss, for a sampler whose logprobs differ from the training forward's;
    token_truncate cuts the weight of each token at sampling_correction_max, sequence_mask leaves out a completion whose
    weight is above it"""
    sampling_correction_max: Annotated[float, Field(ge=1)] = 2.0
    """largest importance weight, under sampling_correction"""
    value_clip_range: Positive = 0.2
    """the value loss clips a new value to ± this around the value at sampling"""
    value_coef: NotNegative = 0.1
    """weight of the value loss"""
    critic_warmup_iterations: CountOrZero = 0
    """iterations at the start in which only the critic is trained"""
    critic_trunk: Literal["separate", "policy"] = "separate"
    """separate: the critic is a network of its own; policy: the critic is a head on the policy's network"""
    critic_head_init: Literal["normal", "zero"] = "normal"
    """a new critic head starts from a normal distribution of std 1/sqrt(d+1), or from zeros"""

    lora_rank: CountOrZero = 0
    """rank of a LoRA adapter that is trained instead of all weights; 0: none"""
    lora_alpha: Positive = 16.0
    """LoRA scaling is lora_alpha / lora_rank"""
    learning_rate: Positive = 3e-6
    """learning rate of AdamW for the policy"""
    critic_learning_rate: Positive | None = None
    """learning rate of AdamW for the critic; none: the policy's"""
    lr_schedule: Literal["linear", "constant"] = "linear"
    """linear: the learning rate falls to 0 over the run; constant: it stays the same"""
    warmup_iterations: CountOrZero = 0
    """iterations over which the learning rate rises from 0"""
    adam_epsilon: Positive = 1e-5
    """epsilon of AdamW"""
    weight_decay: NotNegative = 0.0
    """weight decay of AdamW"""
    max_grad_norm: NotNegative = 1.0
    """limit of the gradient's norm, for policy and critic separately; 0: no limit"""

    precision: Literal["float32", "bfloat16"] = "float32"
    """data type of the forward passes; weights, losses and optimizer stay in float32"""
    frozen_precision: Literal["float32", "bfloat16"] = "float32"
    """data type of the weights that are not trained: the reference's and, with lora_rank, the policy's"""
    gathered_precision: Literal["float32", "bfloat16"] = "float32"
    """under sharding, data type in which trained weights are gathered and used in the forward pass; the optimizer's
    weights stay in float32"""
    gradient_checkpointing: bool = False
    """recompute the activations inside a layer instead of keeping them: less memory, more time, the same numbers"""
    logits_chunk_tokens: CountOrZero = 0
    """number of completion tokens of a micro-batch for which logits are in memory at the same time; they are recomputed
    for the gradient: less memory, the same numbers; 0: all"""
    sharding: Literal["none", "fsdp", "deepspeed"] = "none"
    """with several processes, what each one holds: the whole networks (none, by DDP), or a shard of them (fsdp, or
    deepspeed for ZeRO); one process alone shards nothing"""
    deepspeed_config: Text | None = None
    """JSON file with the configuration of DeepSpeed, under sharding = "deepspeed"; none: ZeRO, stage 2"""

    checkpoint_every: CountOrZero = 10
    """iterations between two checkpoints; 0: only at the end, and where a guard stops the run"""
    max_checkpoints: Count = 2
    """number of checkpoints to keep; older ones are deleted"""
    sample_every: CountOrZero = 10
    """iterations between two tables of samples in samples.jsonl; 0: none"""
    num_samples: Count = 8
    """rollouts in a table of samples"""
    eval_prompts: tuple[Text, ...] = ()
    """sources of held-out prompts, given as in prompts; the policy completes them and is never trained on them"""
    eval_every: Count = 10
    """iterations between two evaluations on the held-out prompts; the start and the end of the run are always
    evaluated"""
    eval_decoding: Literal["greedy", "sampled"] = "greedy"
    """greedy: held-out completions take the most likely tokens; sampled: they are sampled at temperature, with the same
    random numbers each time"""
    max_eval_prompts: Count = 256
    """largest number of held-out prompts that are used, spread evenly over the sources"""
    metrics_port: Annotated[int, Field(ge=0, le=65535)] = 0
    """TCP port for the run's Prometheus metrics; 0: none"""
    metrics_host: Text = "127.0.0.1"
    """address that metrics_port is bound to; with any address but loopback, other machines can read the metrics"""

    trackers: tuple[str, ...] = ()
    """where the metrics of each iteration go besides log.jsonl: "tensorboard", "wandb" and other trackers of
    accelerate"""

    max_masked_share: Share = 0.1
    """largest share of rollouts without a score; the run stops above it"""
    max_constant_iterations: CountOrZero = 5
    """number of iterations in a row with all scores equal, after which the run stops; 0: never"""
    kl_budget: Positive | None = None
    """largest objective/kl, in nats per rollout; the run stops above it; none: no limit"""
    ratio_tolerance: Positive | None = None
    """largest |ratio - 1| before the first step of an iteration; the run stops above it; none: 1e-4, or 0.2 for
    precision bfloat16"""
    sampling_tolerance: Positive | None = None
    """largest |ratio - 1| between generating and training forward, without sampling_correction; the run stops above it;
    none: 0.01, or 0.5 for bfloat16"""
    max_sampling_kl: Positive = 0.05
    """under sampling_correction: largest KL from sampler to training forward, in nats per token; the run stops above
    it"""
    max_sampling_clipped_share: Share = 0.2
    """under sampling_correction: largest share of tokens whose weight was cut or whose completion was masked; the run
    stops above it"""
    max_sampling_log_ratio: Positive = 5.0
    """under sampling_correction: largest difference between the two logprobs of a token, in nats; the run stops above
    it"""
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
                f"critic = {self.critic!r}: a head on the policy's network is not loaded from a checkpoint; leave "
                'critic out, or set critic_trunk = "separate"'
            )
        self._check_engines()
        if self.sampling_correction != "none" and self.sampling_tolerance is not None:
            raise ConfigError(
                f"sampling_tolerance = {self.sampling_tolerance:g} has no effect under sampling_correction = "
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
                'reward_along = "steps" needs exactly one process reward model; leave out scorer_weights, '
                "send_eos_text and all scorer_urls but one"
            )
        for name in ("rollout_batch_size", "rollout_micro_batch_size"):
            if getattr(self, name) % self.samples_per_prompt:
                raise ConfigError(
                    f"{name} = {getattr(self, name)} is not a multiple of samples_per_prompt = "
                    f"{self.samples_per_prompt}, but the completions of a prompt are sampled and scored together; give "
                    "a multiple"
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
                raise ConfigError(
                    'engine_urls are set, but sampler = "local"; set sampler = "vllm", or leave engine_urls out'
                )
            return
        if not self.engine_urls:
            raise ConfigError('sampler = "vllm", but engine_urls are not set; give the base URL of each vLLM server')
        if any("@" in url for url in self.engine_urls):  # not shown, since messages end up in logs
            raise ConfigError("engine_urls: a URL contains a user name or password; put the key into engine_key_file")
        try:
            urls = resolve_urls(self.engine_urls)
        except InvalidArgument as error:
            raise ConfigError(f"engine_urls: {error}") from error
        if urls != self.engine_urls or len(set(urls)) < len(urls):
            raise ConfigError(
                "engine_urls: a URL is empty, is given twice, ends with a slash, or begins or ends with a space; "
                "write each one once, such as http://127.0.0.1:8001"
            )
        if self.engine_sync == "adapter" and not self.lora_rank:
            raise ConfigError(
                'engine_sync = "adapter", but lora_rank = 0, so there is no adapter; set lora_rank, or engine_sync = '
                '"auto"'
            )
        if self.temperature < _MIN_ENGINE_TEMPERATURE:
            raise ConfigError(
                f"temperature = {self.temperature!r}, limit at least {_MIN_ENGINE_TEMPERATURE:g} with sampler = "
                '"vllm", because vLLM raises lower values to that; raise it, or set sampler = "local"'
            )

    def _check_staleness(self) -> None:
        if self.sampler == "local":
            raise ConfigError(
                'max_staleness = 1, but sampler = "local": the policy cannot sample while it is trained; set sampler '
                '= "vllm", or max_staleness = 0'
            )
        if self.sampling_correction == "none":
            raise ConfigError(
                'max_staleness = 1, but sampling_correction = "none": rollouts then come from an earlier policy, and '
                'importance weights have to correct for that; set sampling_correction = "token_truncate", or '
                "max_staleness = 0"
            )
        if self.sharding == "deepspeed":
            raise ConfigError(
                'max_staleness = 1 and sharding = "deepspeed": DeepSpeed keeps its own copies of the weights, so the '
                'weights of the policy that sampled cannot be put in their place; set sharding = "fsdp" or "none"'
            )

    def _check_precision(self) -> None:
        if self.frozen_precision == "bfloat16" and self.lora_rank and self.precision != "bfloat16":
            raise ConfigError(
                'frozen_precision = "bfloat16" with lora_rank: the policy then computes in bfloat16; set precision = '
                '"bfloat16" too, which also sets the tolerances of bfloat16'
            )
        if self.gathered_precision == "bfloat16" and (self.precision == "float32" or self.sharding == "none"):
            raise ConfigError(
                'gathered_precision = "bfloat16" needs precision = "bfloat16" and sharding = "fsdp" or "deepspeed"; '
                "set both, or leave gathered_precision out"
            )

    def _check_critic_warmup(self) -> None:
        warmup = self.critic_warmup_iterations
        if warmup >= self.iterations:
            raise ConfigError(
                f"critic_warmup_iterations = {warmup}, limit {self.iterations - 1} (below iterations), because the "
                "policy would never be trained; lower it or raise iterations"
            )
        if warmup and self.critic_trunk == "policy":
            raise ConfigError(
                f"critic_warmup_iterations = {warmup}: a head on the policy's network cannot be trained without the "
                'policy; set it to 0, or critic_trunk = "separate"'
            )
        if warmup and not self.value_coef:
            raise ConfigError(
                f"critic_warmup_iterations = {warmup}: with value_coef = 0 the critic learns nothing; set "
                "critic_warmup_iterations = 0, or value_coef above 0"
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
    "PPO's probability ratio needs the whole distribution, and these settings sample from a part of it; "
    "lower temperature instead",
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
