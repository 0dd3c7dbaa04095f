"""How many tokens a model can score, and keeping its position encoding a function of the position alone."""

from typing import Any

import torch

from plaudit_export.checkpoints.checkpoint import Checkpoint


def usable_positions(checkpoint: Checkpoint) -> int | None:
    """The longest sequence that the model was made for, None where it does not say.

    RoBERTa and its kin number positions from the pad token's id + 1 on, so 514 positions are 512 usable ones.
    """
    limits = [getattr(checkpoint.config, "max_position_embeddings", None)]
    for name, module in checkpoint.model.named_modules():
        if (
            isinstance(module, torch.nn.Embedding)
            and name.endswith("position_embeddings")
            and module.padding_idx is not None
        ):
            limits.append(module.num_embeddings - module.padding_idx - 1)
    limits.append(freeze_growing_rope(checkpoint.model))
    return min((limit for limit in limits if limit is not None and limit > 0), default=None)


def freeze_growing_rope(model: torch.nn.Module) -> int | None:
    """Stop rotary frequencies from following the longest text of a batch; returns how far they are then right.

    The RoPE types `dynamic` and `longrope` switch all rows to other frequencies when one row is longer than the
    original context. A score would then depend on its batch mates, and a prefix computed before the switch would be
    wrong after it. Up to the original context, the frequencies are those of construction: kept, and the limit told.
    """
    limits = []
    for module in model.modules():
        types = getattr(module, "rope_type", None)
        if isinstance(types, str) and _grows(types):
            limits.append(_original_positions(module, None))
            module.rope_type = "frozen"  # type: ignore[assignment]
        elif isinstance(types, dict) and any(_grows(each) for each in types.values()):
            limits += [_original_positions(module, layer) for layer, each in types.items() if _grows(each)]
            module.rope_type = {layer: "frozen" if _grows(each) else each for layer, each in types.items()}  # type: ignore[assignment]
    return min(limits, default=None)


def _grows(rope_type: str) -> bool:
    return "dynamic" in rope_type or rope_type == "longrope"


def _original_positions(module: Any, layer_type: str | None) -> int:
    config = module.config
    parameters = getattr(config, "rope_parameters", None) or {}
    if layer_type is not None:
        parameters = parameters[layer_type]
    return int(
        parameters.get("original_max_position_embeddings")
        or getattr(config, "original_max_position_embeddings", None)
        or config.max_position_embeddings
    )
