"""Whether a server of its own can load a checkpoint as it is (vLLM), and the hashes of what it loads.

Knows nothing of texts, and of whether that server knows the architecture: the service's check at its start shows that.
"""

from pathlib import Path

from plaudit_export.checkpoints.checkpoint import Checkpoint
from plaudit_export.checkpoints.config_files import CONFIG, read_fields
from plaudit_export.checkpoints.places import locate
from plaudit_export.errors import SourceError
from plaudit_service.bundles.bundle import WeightsFile, sha256_of

# What stands beside a model's weights and is none of them: the makers' copy of the same, and adapters.
_NO_WEIGHTS = ("consolidated", "adapter_model")


def check_loadable(checkpoint: Checkpoint) -> None:
    """Refuse what only this exporter makes a whole model of.

    Raises:
        SourceError: it is an adapter, or of a format that transformers has no class for.
    """
    if checkpoint.adapter is not None:
        raise SourceError(
            f"{checkpoint.id}: is an adapter, but --engine vllm needs a whole checkpoint; merge the adapter "
            "(merge_and_unload, save_pretrained), and serve and export the merged checkpoint"
        )
    if checkpoint.foreign is not None:
        raise SourceError(
            f"{checkpoint.id}: {checkpoint.format_name or 'token logits'} is not a *ForSequenceClassification "
            "model of transformers, and --engine vllm supports nothing else; export it without --engine"
        )


def weights_hashes(source: str) -> dict[WeightsFile, str]:
    """sha256 of the config and of each file of weights, by name: what an engine loads.

    Raises:
        SourceError: a file cannot be read.
    """
    directory = locate(source).directory
    try:
        return {file.name: sha256_of(file) for file in [directory / CONFIG, *_weights(directory)]}
    except OSError as error:
        raise SourceError(f"{source}: cannot be read ({error})") from error


def label_notes(source: str) -> list[str]:
    """A note where vLLM does not load a head of one label."""
    fields = read_fields(locate(source).directory, CONFIG)
    if "id2label" in fields:
        return []
    return [f'{CONFIG} has no id2label, without which vLLM 0.32 loads no head of one label; add {{"0": "score"}}']


def _weights(directory: Path) -> list[Path]:
    return [file for file in sorted(directory.glob("*.safetensors")) if not file.name.startswith(_NO_WEIGHTS)]
