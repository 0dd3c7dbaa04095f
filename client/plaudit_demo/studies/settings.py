"""The sizes of the studies, and the variants of PPO that they compare."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from plaudit_demo.settings import DemoSettings
from plaudit_demo.studies.spec import RunSpec

_EPOCHS = 4


@dataclass(frozen=True, kw_only=True)
class StudySettings:
    """What all studies share.

    Attributes:
        sizes: of models, ground and PPO, but for the seed and the iterations.
        output: directory of everything that they make.
        seeds: one run of each variant for each, on a ground of its own.
        iterations: of each PPO run.
        evaluate_every: iterations from one evaluation to the next; 0: none.
        ground_seed: all seeds share the ground of this one; None: they do not.
    """

    sizes: DemoSettings
    output: Path
    seeds: tuple[int, ...]
    iterations: int
    evaluate_every: int
    ground_seed: int | None = None

    def demo(self, seed: int) -> DemoSettings:
        """The demo's settings for the ground of a seed."""
        return replace(self.sizes, seed=self._ground_seed(seed))

    def ground(self, seed: int) -> Path:
        """Where the models of a seed lie."""
        return self.output / f"ground-{self._ground_seed(seed)}"

    def name(self, what: str, seed: int) -> str:
        """The name of something that a seed has on its ground."""
        ground = self._ground_seed(seed)
        return f"{what}-{seed}" if seed == ground else f"{what}-{seed}-on-{ground}"

    def _ground_seed(self, seed: int) -> int:
        return seed if self.ground_seed is None else self.ground_seed


@dataclass(frozen=True)
class Variant:
    """A way to train.

    Attributes:
        name: of its runs' directories.
        trainer: whose PPO.
        kl_coef: beta; None: the demo's.
        learning_rate: its peak; None: the demo's.
        like_trl: what TRL cannot do otherwise: 1 is taken from the score of an unfinished completion, and gradients are
            not clipped.
        by_engine: a vLLM server in bfloat16 samples, with importance weights.
        max_staleness: 1: it samples ahead.
        clip_range: of the policy's ratio.
    """

    name: str
    trainer: Literal["plaudit", "trl", "trl-same-draws"] = "plaudit"
    kl_coef: float | None = None
    learning_rate: float | None = None
    like_trl: bool = False
    by_engine: bool = False
    max_staleness: int = 0
    clip_range: float = 0.2


DEFAULT = Variant("plaudit")
WITHOUT_KL = Variant("plaudit-beta-0", kl_coef=0.0)
LIKE_TRL = Variant("plaudit-like-trl", like_trl=True)
# The first two settle near the KL of best-of-4 and of best-of-16, at a quarter of the demo's learning rate; the default
# moves through both within its first iterations.
PPO_BY_KL = (
    Variant("plaudit-beta-0.4", kl_coef=0.4, learning_rate=1e-4),
    Variant("plaudit-beta-0.13", kl_coef=0.13, learning_rate=1e-4),
    DEFAULT,
)
BY_ENGINE = Variant("engine", by_engine=True)
BY_ENGINE_AHEAD = Variant("engine-ahead", by_engine=True, max_staleness=1)
BY_ENGINE_AHEAD_WIDE = replace(BY_ENGINE_AHEAD, name="engine-ahead-clip-0.4", clip_range=0.4)
TRL = Variant("trl", trainer="trl", like_trl=True)
TRL_SAME_DRAWS = Variant("trl-same-draws", trainer="trl-same-draws", like_trl=True)


def run_directory(settings: StudySettings, variant: Variant, seed: int) -> Path:
    """Where a run leaves what it has."""
    return settings.output / settings.name(variant.name, seed)


def run_spec(settings: StudySettings, variant: Variant, seed: int, url: str, engine_url: str = "") -> RunSpec:
    """A variant's run: the demo's hyper-parameters, but for what the variant says."""
    demo = settings.demo(seed)
    return RunSpec(
        trainer=variant.trainer,
        ground=str(settings.ground(seed)),
        url=url,
        output=str(run_directory(settings, variant, seed) / "ppo"),
        seed=seed,
        kl_coef=demo.kl_coef if variant.kl_coef is None else variant.kl_coef,
        iterations=settings.iterations,
        evaluate_every=settings.evaluate_every,
        missing_eos="subtract" if variant.like_trl else "replace",
        max_grad_norm=0.0 if variant.like_trl else 1.0,
        rollouts=demo.ppo_rollouts,
        micro_batch=demo.ppo_micro_batch,
        minibatches=demo.ppo_minibatches,
        epochs=_EPOCHS,
        max_completion_tokens=demo.max_completion_tokens,
        temperature=demo.temperature,
        learning_rate=demo.ppo_learning_rate if variant.learning_rate is None else variant.learning_rate,
        warm_up_iterations=demo.ppo_warm_up_iterations,
        engine_url=engine_url,
        max_staleness=variant.max_staleness,
        clip_range=variant.clip_range,
    )
