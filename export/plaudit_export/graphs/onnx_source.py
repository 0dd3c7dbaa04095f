"""Reads a directory that another exporter made (`optimum-cli export onnx`): a graph, a config and a tokenizer.

Knows nothing of how the graph was traced. Its config tells what no graph tells; no weights but the graph's are needed.
"""

import dataclasses
from pathlib import Path

import onnx_ir as ir
import torch
import transformers

from plaudit_export.checkpoints.architecture import (
    behind_the_head,
    check_normalization,
    check_numbers,
    own_code,
    sequence_classifier,
)
from plaudit_export.checkpoints.checkpoint import Checkpoint, load_tokenizer
from plaudit_export.checkpoints.config_files import CONFIG, read_fields
from plaudit_export.checkpoints.formats import saved_normalization
from plaudit_export.checkpoints.loading import load_config
from plaudit_export.errors import SourceError, first_line
from plaudit_export.graphs.graph_file import save_graph
from plaudit_export.graphs.tracing import strip
from plaudit_export.quiet import quiet
from plaudit_export.recipes.on_disk import recipe_on_disk

INPUTS = {"input_ids", "attention_mask", "token_type_ids", "position_ids"}
OUTPUT = "logits"


@dataclasses.dataclass(frozen=True)
class OnnxSource:
    """A directory with a graph.

    Attributes:
        graph: the file.
        checkpoint: what config and tokenizer tell; its model has shapes and no weights.
        opset: of the graph.
    """

    graph: Path
    checkpoint: Checkpoint
    opset: int


def load_onnx(directory: Path) -> OnnxSource:
    """Read the directory; config and tokenizer may be in the one above, as in a hub repository's `onnx` folder.

    Raises:
        SourceError: something is missing, or the graph is none of text classification.
    """
    graph = directory / "model.onnx"
    if not graph.is_file():
        raise SourceError(f"{directory}: has no model.onnx; give a directory made by `optimum-cli export onnx`")
    homes = [each for each in (directory, directory.resolve().parent) if (each / "config.json").is_file()]
    if not homes:
        raise SourceError(f"{directory}: has no config.json, and neither has the directory above it")
    home = str(homes[0])
    with quiet():
        config = load_config(home)
        architecture = sequence_classifier(home, config)
        check_normalization(home, config)
        check_numbers(home, config)
        with torch.device("meta"):
            model = getattr(transformers, architecture)(config).eval()
        tokenizer = load_tokenizer(home)
    checkpoint = Checkpoint(
        id=homes[0].resolve().name,
        revision=None,
        kind="plain",
        architecture=architecture,
        model=model,
        tokenizer=tokenizer.taken,
        auto_tokenizer=tokenizer.auto,
        tokenizer_notes=tokenizer.notes,
        kept=saved_normalization(home, None, read_fields(homes[0], CONFIG), {}),
        trained_by=recipe_on_disk(homes[0]),
        notes=(
            *(
                f"auto_map of the config names {name} for {auto}; that code is not run, the graph is taken as it is"
                for auto, name in own_code(getattr(config, "auto_map", None)).items()
            ),
            *behind_the_head(home, config, architecture, builtin_class=True),
        ),
    )
    return OnnxSource(graph, checkpoint, _check_graph(graph))


def copy_graph(source: OnnxSource, path: Path) -> None:
    """Write the graph without its exporter's metadata, its weights in one file where they need one.

    Raises:
        SourceError: its external weights cannot be read.
    """
    try:
        model = ir.load(source.graph)
        strip(model)
        save_graph(model, path)
    except (OSError, ValueError) as error:
        raise SourceError(f"{source.graph}: its weights cannot be read: {first_line(error)}") from error


def _check_graph(path: Path) -> int:
    try:
        model = ir.load(path)
    except Exception as error:  # protobuf raises classes of its own
        raise SourceError(f"{path}: is not an ONNX graph: {first_line(error)}") from error
    inputs = {str(value.name) for value in model.graph.inputs}
    outputs = {str(value.name) for value in model.graph.outputs}
    if OUTPUT not in outputs or "input_ids" not in inputs or inputs - INPUTS:
        raise SourceError(
            f"{path}: takes {', '.join(sorted(inputs))} and gives {', '.join(sorted(outputs))}; a graph of text "
            f"classification takes some of {', '.join(sorted(INPUTS))} and gives {OUTPUT} "
            "(optimum-cli export onnx --task text-classification)"
        )
    for value in model.graph.inputs:
        if value.shape is not None and any(isinstance(size, int) for size in value.shape):
            raise SourceError(f"{path}: {value.name} has the fixed shape {value.shape}; export it with dynamic axes")
    return int(model.opset_imports[""])
