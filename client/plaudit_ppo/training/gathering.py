"""What all processes have sampled and scored, for statistics, so that every one of them decides the same."""

from dataclasses import fields, replace

from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from plaudit_ppo.scoring.pool import ScoredBatch, join
from plaudit_ppo.training.experience import Experience


def gather_scored(accelerator: Accelerator, scored: ScoredBatch) -> ScoredBatch:
    """The scores of all processes, in the order of `gather_experience`; the longest wait, and all calls added up."""
    if accelerator.num_processes == 1:
        return scored
    batches = gather_object([scored])
    return join(batches, wait_s=max(batch.wait_s for batch in batches))


def gather_experience(accelerator: Accelerator, experience: Experience) -> Experience:
    """The experience of all processes, for statistics."""
    if accelerator.num_processes == 1:
        return experience

    def whole(part: Tensor, *, left: bool = False) -> Tensor:
        if part.ndim > 1:  # padded to one width: completions right, prompts left
            part = accelerator.pad_across_processes(part, dim=1, pad_first=left).to(part.dtype)
        gathered: Tensor = accelerator.gather(part)
        return gathered

    rollouts = experience.rollouts
    names = [field.name for field in fields(rollouts)]
    rollouts = replace(
        rollouts, **{name: whole(getattr(rollouts, name), left=name.startswith("prompt")) for name in names}
    )
    names = [field.name for field in fields(experience) if field.name != "rollouts"]
    return replace(experience, rollouts=rollouts, **{name: whole(getattr(experience, name)) for name in names})
