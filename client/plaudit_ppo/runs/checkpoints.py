"""Checkpoints of a run: what they hold, which ones are kept, and how a run goes on from the newest.

A checkpoint is a directory: policy/ and critic/ as transformers reads them, optimizer.safetensors, and state.json; and
where the policy before the last update samples the next batch, that one as previous_policy/. The link `best` leads to
the one whose policy did best on held-out prompts.
Nothing in it is pickled. Random generators are functions of seed and counters (`seeding`), so none is stored.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from plaudit_client.whole_files import remove_directory
from plaudit_ppo.errors import CheckpointError, OutputError
from plaudit_ppo.models.critic import Critic, TrunkCritic
from plaudit_ppo.models.lora import is_lora, restore_adapter
from plaudit_ppo.models.policy import load_policy
from plaudit_ppo.models.sharding import load_whole_state
from plaudit_ppo.runs.directories import left_directory

PREVIOUS_POLICY = "previous_policy"
_PREFIX, _BEST = "iteration-", "best"
_OF_OTHER_MODELS = "it belongs to other models than the given ones; give the models of the run"
_OPTIMIZER, _STATE = "optimizer.safetensors", "state.json"

OptimizerState = dict[int, dict[str, Tensor]]


@dataclass(frozen=True)
class RunState:
    """Where a run stands, besides the weights.

    Attributes:
        iteration: how many are done; also the position in the prompts and in every random sequence.
        kl_coef: beta of the next iteration.
        constant_iterations: how many of the last ones had one score for all rollouts.
        prompts_hash: of the encoded prompts.
        fingerprint: of the reward model; None: not told.
    """

    iteration: int
    kl_coef: float
    constant_iterations: int = 0
    prompts_hash: str = ""
    fingerprint: str | None = None


def save_checkpoint(
    folder: Path,
    state: RunState,
    optimizer: Mapping[str, Tensor],
    *,
    write_models: Callable[[Path], None],
    keep: int | None,
    best: int | None = None,
) -> Path:
    """Writes a checkpoint unless there is one of this iteration, and removes the oldest beyond `keep`.

    Args:
        folder: of all checkpoints of the run.
        state: where the run stands.
        optimizer: from `optimizer_tensors`.
        write_models: writes policy/ and critic/ into the directory that it is given.
        keep: how many of the newest are kept; None: all.
        best: after how many iterations the policy was best, whose checkpoint is kept, too; None: not known.

    Returns:
        The checkpoint's directory.

    Raises:
        OutputError: it cannot be written.
    """
    path = checkpoint_path(folder, state.iteration)
    if not path.exists():  # else it is of this iteration's start, and now may be in the middle of its update
        with left_directory(path) as directory:
            write_models(directory)
            save_file(dict(optimizer), directory / _OPTIMIZER)
            (directory / _STATE).write_text(json.dumps(asdict(state), indent=2) + "\n", encoding="utf-8")
    if best is not None:
        name_best(folder, best)
    for old in _checkpoints(folder)[:-keep] if keep else ():
        if best is None or old != checkpoint_path(folder, best):
            remove_directory(old)
    return path


def name_best(folder: Path, iteration: int | None) -> None:
    """Has the link `best` lead to the checkpoint after so many iterations, in one step; without one, only tries to.

    Raises:
        OutputError: the file system takes no links.
    """
    path, link = checkpoint_path(folder, iteration or 0), folder / f".{_BEST}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(path.name)
        if iteration is not None and path.exists():
            link.replace(folder / _BEST)
        else:
            link.unlink()
    except OSError as error:
        raise OutputError(
            f"{folder / _BEST}: cannot be linked ({error.strerror}); choose an output directory on a file system "
            "with symbolic links, or leave out eval_prompts"
        ) from error


def checkpoint_path(folder: Path, iteration: int) -> Path:
    """Where the checkpoint after so many iterations is, or would be."""
    return folder / f"{_PREFIX}{iteration:06d}"


def newest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint to go on from, if there is one."""
    return next(reversed(_checkpoints(folder)), None)


def _checkpoints(folder: Path) -> list[Path]:
    """Oldest first."""
    return sorted(folder.glob(f"{_PREFIX}*"), key=lambda path: int(path.name.removeprefix(_PREFIX)))


def load_state(path: Path) -> RunState:
    """The state in a checkpoint.

    Raises:
        CheckpointError: it is missing or malformed.
    """
    try:
        return RunState(**json.loads((path / _STATE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"{path / _STATE}: not the state of a run ({error}); delete this checkpoint") from error


def load_optimizer(path: Path, shapes: Sequence[torch.Size]) -> OptimizerState:
    """The optimizer's state in a checkpoint.

    Args:
        path: of the checkpoint.
        shapes: of the parameters, whole.

    Raises:
        CheckpointError: it is missing, malformed, or of other parameters.
    """
    try:
        tensors = load_file(path / _OPTIMIZER)
    except Exception as error:  # safetensors has an exception type of its own in every version
        raise CheckpointError(f"{path / _OPTIMIZER}: cannot be read ({error}); delete this checkpoint") from error
    state: OptimizerState = {}
    for name, tensor in tensors.items():
        number, _, key = name.partition(".")
        state.setdefault(int(number), {})[key] = tensor
    for number, kept in state.items():
        shape = shapes[number] if number < len(shapes) else None
        if any(tensor.ndim > 0 and tensor.shape != shape for tensor in kept.values()):
            raise CheckpointError(
                f"{path / _OPTIMIZER}: it belongs to other models than the given ones; give the models of the run"
            )
    return state


def optimizer_tensors(state: Iterable[dict[str, Tensor]], *, keep: bool) -> dict[str, Tensor]:
    """The state of each parameter as `number.name`; what AdamW keeps are tensors alone.

    All processes have to ask for it, and get nothing with `keep` False.

    Args:
        state: of one parameter after the other; each element of it may be gathered from all processes.
        keep: whether it is written here.
    """
    return {
        f"{number}.{key}": tensor.cpu() for number, kept in enumerate(state) for key, tensor in kept.items() if keep
    }


def restore_weights(policy: PreTrainedModel, critic: Critic | TrunkCritic, checkpoint: Path) -> None:
    """Gives both the weights that a checkpoint has of them.

    Raises:
        CheckpointError: it has none, or they are of other models.
    """
    restore_policy(policy, checkpoint / "policy")
    try:
        critic.restore(checkpoint / "critic")
    except (OSError, RuntimeError) as error:
        raise CheckpointError(f"{checkpoint}: {_OF_OTHER_MODELS}") from error


def restore_policy(policy: PreTrainedModel, directory: Path) -> None:
    """Gives the policy the weights in a directory of a checkpoint.

    Raises:
        CheckpointError: there are none, or they are of another policy.
    """
    try:
        if is_lora(policy):
            restore_adapter(policy, directory)
        else:
            load_whole_state(policy, load_policy(directory, builtin_class=True)[0].state_dict())
    except (OSError, RuntimeError) as error:
        raise CheckpointError(f"{directory.parent}: {_OF_OTHER_MODELS}") from error
