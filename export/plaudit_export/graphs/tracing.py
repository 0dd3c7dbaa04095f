"""Traces a reward model into one ONNX graph whose bytes are the same on every export.

The inputs and outputs, and why one graph serves every mode: docs/bundle.md. Knows nothing of tokenizers and bundles.
"""

import inspect
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import torch
import transformers
from onnx_ir.passes.common import ClearMetadataAndDocStringPass

from plaudit_export.checkpoints.checkpoint import Checkpoint
from plaudit_export.checkpoints.loading import network
from plaudit_export.errors import ExportError, first_line
from plaudit_export.graphs.causal_attention import KeyValues, NewKeyValues, is_maskless, maskless
from plaudit_export.graphs.experts import take_experts_apart
from plaudit_export.graphs.graph_file import hold_in_bfloat16, save_graph, without_numbers
from plaudit_export.graphs.sinks import sinks_first
from plaudit_export.quiet import quiet

# From 23 on, attention is one native operator (also RMSNormalization and RotaryEmbedding).
OPSET = 23

# Of each input or output: a name for every axis that may change, None for one that does not.
Axes = dict[str, tuple[str | None, ...]]


class CausalGraph(torch.nn.Module):
    """A decoder with a scalar head that continues a prefix, which may be empty.

    Args:
        model: the decoder.
        has_mask: whether its layers need a mask (`causal_attention.is_maskless`).
    """

    def __init__(self, model: torch.nn.Module, *, has_mask: bool) -> None:
        super().__init__()
        self.base = network(model)
        self.score: Any = model.score
        self.has_mask = has_mask

    def forward(
        self,
        input_ids: torch.Tensor,  # (B, T)
        attention_mask: torch.Tensor,  # (B, P + T)
        position_ids: torch.Tensor,  # (B, T)
        prefix_index: torch.Tensor,  # (B,)
        last_index: torch.Tensor,  # (B,)
        token_index: torch.Tensor,  # (K,)
        present_index: torch.Tensor,  # (M,)
        past: KeyValues,  # per layer (N, H, P, D)
    ) -> tuple[torch.Tensor, torch.Tensor, KeyValues]:
        """Scores (B, heads), those of K tokens (B, K, heads), and M keys and values (B, H, M, D) of every layer.

        Tokens that an index does not name are not computed by the head, or not kept until the end of the call.
        """
        rows = [(key.index_select(0, prefix_index), value.index_select(0, prefix_index)) for key, value in past]
        given = {"input_ids": input_ids, "position_ids": position_ids, "use_cache": True}
        if self.has_mask:
            # Built empty and filled: the one form that both majors of transformers trace.
            cache = _empty_cache()
            for layer, (key, value) in enumerate(rows):
                cache.update(key, value, layer)
            hidden = self.base(**given, attention_mask=attention_mask, past_key_values=cache).last_hidden_state
            present = [(layer.keys, layer.values) for layer in cache.layers]
        else:
            with maskless(self.base, rows) as layers:
                hidden = self.base(**given, attention_mask=None, past_key_values=NewKeyValues()).last_hidden_state
            present = [layers.present[layer] for layer in range(len(rows))]
        B, K = hidden.shape[0], token_index.shape[0]
        pooled = hidden[torch.arange(B), last_index]
        # In rows, so that it is the same product of the same weights.
        tokens = self._head(hidden.index_select(1, token_index).reshape(B * K, hidden.shape[-1]))
        kept = [(key.index_select(2, present_index), value.index_select(2, present_index)) for key, value in present]
        return self._head(pooled), tokens.reshape(B, K, tokens.shape[-1]), kept

    def _head(self, hidden: torch.Tensor) -> torch.Tensor:
        """Scores (rows, heads) of hidden states (rows, hidden). A head in low precision ties scores."""
        if not isinstance(self.score, torch.nn.Linear):
            scores: torch.Tensor = self.score(hidden.float())
            return scores
        bias = None if self.score.bias is None else self.score.bias.float()
        return torch.nn.functional.linear(hidden.float(), self.score.weight.float(), bias)


class EncoderGraph(torch.nn.Module):
    """An encoder whose own head pools."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model
        rotary = any(name.endswith("rotary_emb") for name, _ in model.named_modules())
        self.give_positions = rotary and "position_ids" in inspect.signature(model.forward).parameters

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Scores (B, heads)."""
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
        if token_type_ids is not None:
            inputs["token_type_ids"] = token_type_ids
        if self.give_positions:
            # transformers broadcasts one row of positions, ONNX's RotaryEmbedding takes one for every text.
            inputs["position_ids"] = torch.arange(input_ids.shape[1]).expand(input_ids.shape)
        logits: torch.Tensor = self.model(**inputs).logits
        return logits.float()


def lower(model: torch.nn.Module, dtype: torch.dtype) -> None:
    """Turn a model into float16 or bfloat16, in place, but its poolers and its head, which stay in float32.

    A head in low precision ties scores. The frequencies of rotary positions stay in float32, as where transformers
    loads a model in this type: rounded ones are off by whole radians some thousand tokens on.
    """
    base = network(model)
    frequencies = {name: each for name, each in base.named_buffers(remove_duplicate=False) if "inv_freq" in name}
    base.to(dtype)
    for name, each in frequencies.items():
        module, _, buffer = name.rpartition(".")
        setattr(base.get_submodule(module), buffer, each)
    heads = [child for child in model.children() if base not in child.modules()]
    heads += [module for name, module in base.named_modules() if name.split(".")[-1] == "pooler"]
    for head in heads:
        head.float()
        head.register_forward_pre_hook(lambda _, given: tuple(value.float() for value in given))


def release(model: torch.nn.Module) -> None:
    """Give the memory of a model's weights back: the tracer keeps its last graph, and the graph keeps parameters."""
    for parameter in model.parameters():
        parameter.data = parameter.data.new_empty(0)


def needs_mask(checkpoint: Checkpoint, max_tokens: int) -> bool:
    """Whether attention has to be told what it must not see; ask while the model is in float32.

    Args:
        checkpoint: the reward model.
        max_tokens: of the longest text that will be scored; a window of fewer tokens needs a mask.
    """
    if checkpoint.kind != "causal":
        return True
    with quiet(), torch.no_grad():
        return not is_maskless(network(checkpoint.model), key_value_shapes(checkpoint), max_tokens)


def export_graph(
    checkpoint: Checkpoint, path: Path, *, has_mask: bool = True, to_run_only: bool = False, check: bool = False
) -> None:
    """Trace the model and write its graph to `path`.

    Args:
        checkpoint: the reward model.
        path: the file to write.
        has_mask: what `needs_mask` says.
        to_run_only: it becomes part of no bundle: the smallest files that ONNX Runtime makes the same computation of.
        check: `check_types` of it, for a graph that nothing here can run.

    Raises:
        ExportError: this architecture cannot be traced, or the check fails.
    """
    try:
        with quiet(), torch.no_grad(), sinks_first(network(checkpoint.model)):
            take_experts_apart(checkpoint.model)
            model = (
                _trace_causal(checkpoint, has_mask=has_mask)
                if checkpoint.kind == "causal"
                else _trace_encoder(checkpoint)
            )
    except ExportError:
        raise
    except Exception as error:  # the tracer runs a foreign model: it can raise anything
        raise ExportError(f"{checkpoint.architecture} cannot be traced into a graph: {first_line(error)}") from error
    strip(model)
    if check:
        check_types(model)
    if to_run_only:
        hold_in_bfloat16(model.graph)
        save_graph(model, path, max_inline_bytes=0)
    else:
        save_graph(model, path)
    for value in model.graph.initializers.values():
        value.const_value = None  # a view of the model's weights; the tracer keeps the graph (`release`)


def check_types(model: ir.Model) -> None:
    """Hold every node of a graph against ONNX's definitions, types included.

    Raises:
        ExportError: a node is none of ONNX, or takes or gives other types than it is defined for.
    """
    try:
        onnx.checker.check_model(without_numbers(model), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"what was traced is no valid graph: {first_line(error)}; export it in fp32") from error


def _trace_causal(checkpoint: Checkpoint, *, has_mask: bool) -> ir.Model:
    B, T, P, N, K, M = 2, 5, 7, 3, 4, 6  # any sizes do, if they are unequal and none is 0 or 1
    shapes = key_value_shapes(checkpoint)
    dtype = next(network(checkpoint.model).parameters()).dtype
    example = (
        torch.zeros(B, T, dtype=torch.int64),
        torch.ones(B, P + T, dtype=torch.int64),
        torch.arange(P, P + T).repeat(B, 1),
        torch.tensor([2, 0]),
        torch.tensor([T - 1, 1]),
        torch.arange(K),
        torch.arange(M),
        [
            (torch.zeros(N, heads, P, size, dtype=dtype), torch.zeros(N, heads, P, value, dtype=dtype))
            for heads, size, value in shapes
        ],
    )
    layers = [f"{layer}.{part}" for layer in range(len(shapes)) for part in ("key", "value")]
    inputs: Axes = {
        "input_ids": ("B", "T"),
        "attention_mask": ("B", "P+T"),
        "position_ids": ("B", "T"),
        "prefix_index": ("B",),
        "last_index": ("B",),
        "token_index": ("K",),
        "present_index": ("M",),
    }
    pasts: Axes = {f"past.{layer}": ("N", None, "P", None) for layer in layers}
    presents: Axes = {f"present.{layer}": ("B", None, "M", None) for layer in layers}
    dynamic = _dynamic(pasts)
    model = _trace(
        CausalGraph(checkpoint.model, has_mask=has_mask),
        example,
        (*_dynamic(inputs), list(zip(dynamic[::2], dynamic[1::2], strict=True))),
        inputs | pasts,
        {"scores": ("B", None), "token_scores": ("B", "K", None)} | presents,
    )
    if not has_mask:
        model.graph.inputs.remove(next(value for value in model.graph.inputs if value.name == "attention_mask"))
    return model


def _trace_encoder(checkpoint: Checkpoint) -> ir.Model:
    example = [torch.zeros(2, 5, dtype=torch.int64), torch.ones(2, 5, dtype=torch.int64)]
    inputs: Axes = {"input_ids": ("B", "T"), "attention_mask": ("B", "T")}
    if checkpoint.token_type_ids:
        example.append(torch.zeros(2, 5, dtype=torch.int64))
        inputs["token_type_ids"] = ("B", "T")
    return _trace(
        EncoderGraph(checkpoint.model), tuple(example), tuple(_dynamic(inputs)), inputs, {"scores": ("B", None)}
    )


def key_value_shapes(checkpoint: Checkpoint) -> list[tuple[int, int, int]]:
    """Of each layer: heads, and the sizes of a key and of a value, learned by running the model once."""
    cache = _empty_cache()
    base = network(checkpoint.model)
    base(input_ids=torch.zeros(1, 2, dtype=torch.int64), past_key_values=cache, use_cache=True)
    layers = [(layer.keys, layer.values) for layer in cache.layers]
    if not layers or not all(isinstance(key, torch.Tensor) and key.dim() == 4 for key, _ in layers):
        raise ExportError(
            f"{checkpoint.architecture} does not keep keys and values of every layer (it is no transformer)"
        )
    return [(key.shape[1], key.shape[3], value.shape[3]) for key, value in layers]


def _empty_cache() -> Any:
    """A cache that keeps everything, also in layers with a sliding window (the mask cuts there)."""
    return transformers.DynamicCache()


def _dynamic(axes: Axes) -> list[dict[int, Any]]:
    return [{axis: torch.export.Dim.DYNAMIC for axis, name in enumerate(names) if name} for names in axes.values()]


def _trace(
    module: torch.nn.Module, example: tuple[Any, ...], dynamic_shapes: tuple[Any, ...], inputs: Axes, outputs: Axes
) -> ir.Model:
    program = torch.onnx.export(
        module.eval(),
        example,
        dynamo=True,
        opset_version=OPSET,
        input_names=list(inputs),
        output_names=list(outputs),
        dynamic_shapes=dynamic_shapes,
        verbose=False,
    )
    if program is None:
        raise ExportError("the exporter gave no graph")
    graph = program.model.graph
    for value, names in zip([*graph.inputs, *graph.outputs], [*inputs.values(), *outputs.values()], strict=True):
        if value.shape is None:
            raise ExportError(f"the exporter lost the shape of {value.name}")
        value.shape = ir.Shape([name or size for name, size in zip(names, value.shape, strict=True)])
    _give_norms_one_type(graph)
    return program.model


def _give_norms_one_type(graph: ir.Graph) -> None:
    """Cast what a norm reads to the type of its scale: the operator takes two types, and runtimes do not.

    Gemma computes its norms in float32, scale included, and rounds what comes out.
    """
    for node in [node for node in graph if node.op_type == "RMSNormalization"]:
        value, scale = node.inputs[:2]
        assert value is not None
        assert scale is not None
        if value.dtype != scale.dtype:
            cast = ir.node("Cast", [value], {"to": scale.dtype})
            graph.insert_before(node, cast)
            node.replace_input_with(0, cast.outputs[0])


def strip(model: ir.Model) -> None:
    """Remove what is not needed to run: it holds stack traces with paths of this machine."""
    ClearMetadataAndDocStringPass()(model)
    model.metadata_props.clear()
    model.doc_string = None
    model.producer_name, model.producer_version = "plaudit", None
    graph = model.graph
    kept = {*graph.inputs, *graph.outputs, *graph.initializers.values()}
    for value in kept:
        value.metadata_props.clear()
        value.doc_string = None
    for node in graph.all_nodes():
        for value in node.outputs:
            if value not in kept:
                value.metadata_props.clear()
                value.shape = value.type = None  # the runtime infers them
    for value in graph.initializers.values():
        if value.const_value is not None:
            value.const_value.metadata_props.clear()
