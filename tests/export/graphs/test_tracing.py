from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir
import onnxruntime as ort
import pytest
import torch

from plaudit_export.checkpoints.checkpoint import load_checkpoint
from plaudit_export.checkpoints.rules import Options, derive_rules
from plaudit_export.errors import ExportError
from plaudit_export.graphs.graph_file import save_graph
from plaudit_export.graphs.precision import GraphScorer
from plaudit_export.graphs.tracing import OPSET, export_graph, needs_mask
from plaudit_export.testing import (
    CAUSAL_ARCHITECTURES,
    ENCODER_ARCHITECTURES,
    tiny_causal_checkpoint,
    tiny_encoder_checkpoint,
)
from plaudit_service.text.tokenization import TokenizedText

DEFAULT_CAUSAL = ["llama", "gpt2"]
DEFAULT_ENCODERS = ["bert", "roberta"]
PREFIXES = [1, 7, 64]
CAUSAL_LENGTHS = [2, 3, 17, 90, 200]
ENCODER_LENGTHS = [2, 3, 17, 60, 128]


def with_slow(names: dict, fast: list[str]) -> list:
    return [pytest.param(name, marks=[] if name in fast else pytest.mark.slow) for name in names]


class Graph:
    """An exported graph in ONNX Runtime beside the model that it came from."""

    def __init__(self, checkpoint: Path, path: Path) -> None:
        self.checkpoint = load_checkpoint(str(checkpoint))
        self.model = self.checkpoint.model
        widen(self.model)
        self.path = path
        self.session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
        self.inputs = {value.name: value for value in self.session.get_inputs()}
        self.outputs = [value.name for value in self.session.get_outputs()]

    def reference(self, ids: list[int]) -> float:
        with torch.no_grad():
            return self.model(torch.tensor([ids])).logits[0, 0].item()

    def run(
        self,
        rows: list[list[int]],
        past: dict | None = None,
        prefix_index: list[int] | None = None,
        **indices: list[int],
    ) -> dict:
        """Rows padded on the right; a causal graph continues from `past`, which is empty where it is not given."""
        length = max(map(len, rows))
        ids = np.array([row + [0] * (length - len(row)) for row in rows], dtype=np.int64)
        keep = np.array([[1] * len(row) + [0] * (length - len(row)) for row in rows], dtype=np.int64)
        feeds = {"input_ids": ids, "attention_mask": keep, "token_type_ids": np.zeros_like(ids)}
        if "prefix_index" in self.inputs:
            past = past or self.empty_past()
            P = past["past.0.key"].shape[2]
            feeds |= (
                past
                | {
                    "attention_mask": np.concatenate([np.ones((len(rows), P), dtype=np.int64), keep], axis=1),
                    "position_ids": np.tile(np.arange(P, P + length), (len(rows), 1)),
                    "prefix_index": np.array(prefix_index or [0] * len(rows)),
                    "last_index": np.array([len(row) - 1 for row in rows]),
                    "token_index": np.arange(length),
                    "present_index": np.arange(P + length),
                }
                | {name: np.array(index, dtype=np.int64) for name, index in indices.items()}
            )
        values = self.session.run(None, {name: feeds[name] for name in self.inputs})
        return dict(zip(self.outputs, values, strict=True))

    def scores(self, *args, **kwargs) -> list[float]:
        return self.run(*args, **kwargs)["scores"][:, 0].tolist()

    def empty_past(self) -> dict:
        pasts = {name: value.shape for name, value in self.inputs.items() if name.startswith("past.")}
        return {name: np.zeros((1, shape[1], 0, shape[3]), dtype=np.float32) for name, shape in pasts.items()}

    def past_of(self, prefixes: list[list[int]]) -> dict:
        """Keys and values of prefixes of one length."""
        present = self.run(prefixes)
        return {
            name.replace("present", "past"): value for name, value in present.items() if name.startswith("present.")
        }


def widen(model: torch.nn.Module) -> None:
    """Scale the head up, so that the scores of the texts below have a standard deviation of 1 or more."""
    heads = [each for each in model.modules() if isinstance(each, torch.nn.Linear) and each.out_features == 1]
    lengths = CAUSAL_LENGTHS if hasattr(model, "score") else ENCODER_LENGTHS
    with torch.no_grad():
        scores = [model(torch.tensor([row])).logits[0, 0].item() for row in random_rows(1, lengths)]
        for parameter in heads[-1].parameters():
            parameter.mul_(max(1.0, 1.01 / float(np.std(scores))))


def random_rows(seed: int, lengths: list[int]) -> list[list[int]]:
    """Ids of ordinary tokens: no pads, so that the last token is the pooled one."""
    rng = np.random.default_rng(seed)
    return [rng.integers(8, 250, size=length).tolist() for length in lengths]


def within_tolerance(expected: list[float]) -> object:
    return pytest.approx(expected, rel=1e-5, abs=1e-5)


@pytest.fixture(scope="module")
def graph_of(
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[str], Graph]:
    graphs: dict[str, Graph] = {}

    def make(architecture: str) -> Graph:
        if architecture not in graphs:
            build = tiny_causal_checkpoint if architecture in CAUSAL_ARCHITECTURES else tiny_encoder_checkpoint
            directory = build(tmp_path_factory.mktemp(architecture), architecture=architecture)
            checkpoint = load_checkpoint(str(directory))
            widen(checkpoint.model)
            has_mask = needs_mask(checkpoint, checkpoint.config.max_position_embeddings)
            export_graph(checkpoint, directory / "model.onnx", has_mask=has_mask)
            graphs[architecture] = Graph(directory, directory / "model.onnx")
        return graphs[architecture]

    return make


@pytest.mark.parametrize("architecture", with_slow(CAUSAL_ARCHITECTURES, DEFAULT_CAUSAL))
class TestCausal:
    def test_scores_equal_those_of_transformers_alone_and_padded_in_a_batch(self, graph_of, architecture):
        graph = graph_of(architecture)
        rows = random_rows(1, CAUSAL_LENGTHS)
        expected = [graph.reference(row) for row in rows]
        assert np.std(expected) >= 1
        assert [graph.scores([row])[0] for row in rows] == within_tolerance(expected)
        assert graph.scores(rows) == within_tolerance(expected)

    @pytest.mark.parametrize("num_prefix", PREFIXES)
    def test_continuing_a_shared_prefix_gives_the_score_of_the_whole_text(self, graph_of, architecture, num_prefix):
        graph = graph_of(architecture)
        prefix, *ends = random_rows(2, [num_prefix, 2, 5, 30, 100])
        expected = [graph.reference(prefix + end) for end in ends]
        past = graph.past_of([prefix])
        assert graph.scores(ends, past) == within_tolerance(expected)
        assert [graph.scores([end], past)[0] for end in ends] == within_tolerance(expected)

    @pytest.mark.parametrize("num_prefix", PREFIXES)
    def test_a_completion_of_any_length_continues_in_the_engine_with_the_bits_of_plain_scoring(
        self, graph_of, architecture, num_prefix
    ):
        graph = graph_of(architecture)
        rules = derive_rules(graph.checkpoint, Options())
        engine = GraphScorer(
            graph.path.parent, rules.scoring({"model.onnx": "0" * 64, "tokenizer.json": "0" * 64})
        ).engine
        prefix, *ends = random_rows(6, [num_prefix, 1, 2, 5, 30])
        texts = [TokenizedText(np.array(prefix + end), None, num_prefix + len(end), truncated=False) for end in ends]
        plain = [engine.run([text])[0, 0].item() for text in texts]
        assert plain == within_tolerance([graph.reference(prefix + end) for end in ends])
        computed = engine.compute_prefix(np.array(prefix))
        assert [engine.run([text], computed)[0, 0].item() for text in texts] == plain
        assert engine.run(texts, computed)[:, 0].tolist() == plain

    def test_rows_of_one_call_may_continue_different_prefixes_of_one_length(self, graph_of, architecture):
        graph = graph_of(architecture)
        *prefixes, first, second, third = random_rows(3, [9, 9, 4, 12, 7])
        expected = [graph.reference(prefixes[index] + end) for index, end in ((1, first), (0, second), (1, third))]
        served = graph.scores([first, second, third], graph.past_of(prefixes), [1, 0, 1])
        assert served == within_tolerance(expected)


@pytest.mark.parametrize("architecture", with_slow(ENCODER_ARCHITECTURES, DEFAULT_ENCODERS))
def test_encoder_scores_equal_those_of_transformers_alone_and_padded_in_a_batch(graph_of, architecture):
    graph = graph_of(architecture)
    rows = random_rows(1, ENCODER_LENGTHS)
    expected = [graph.reference(row) for row in rows]
    assert np.std(expected) >= 1
    assert [graph.scores([row])[0] for row in rows] == within_tolerance(expected)
    assert graph.scores(rows) == within_tolerance(expected)


def test_the_bits_of_a_score_do_not_depend_on_batch_mates_or_a_shared_prefix(graph_of):
    graph = graph_of("llama")
    prefix, *ends = random_rows(5, [20, 2, 9, 33])
    alone = [graph.scores([prefix + end])[0] for end in ends]
    assert graph.scores([prefix + end for end in ends]) == alone
    assert graph.scores(ends, graph.past_of([prefix])) == alone


def test_a_prefix_that_continues_another_one_leaves_the_bits_as_they_are(graph_of):
    graph = graph_of("llama")
    first, second, *ends = random_rows(7, [11, 30, 2, 9, 33])
    present = graph.run([second], graph.past_of([first]))
    chained = {name.replace("present", "past"): value for name, value in present.items() if "present" in name}
    assert graph.scores(ends, chained) == [graph.scores([first + second + end])[0] for end in ends]


def test_the_head_gives_every_token_the_score_of_the_text_up_to_it(graph_of):
    graph = graph_of("llama")
    rows = random_rows(8, [5, 17])
    along = graph.run(rows)["token_scores"][..., 0]
    assert along[1].tolist() == within_tolerance([graph.reference(rows[1][: end + 1]) for end in range(17)])
    assert along[0, :5].tolist() == within_tolerance([graph.reference(rows[0][: end + 1]) for end in range(5)])


def test_scores_have_the_same_bits_whatever_else_is_asked_for(graph_of):
    graph = graph_of("llama")
    rows = random_rows(9, [5, 17, 40])
    everything = graph.run(rows)
    nothing = graph.run(rows, token_index=[], present_index=[])
    assert nothing["scores"].tobytes() == everything["scores"].tobytes()
    assert nothing["token_scores"].shape == (3, 0, 1)
    assert nothing["present.1.value"].shape == (3, 2, 0, 8)
    some = graph.run(rows, token_index=[16, 3], present_index=[0, 1, 2])
    assert some["scores"].tobytes() == everything["scores"].tobytes()
    assert some["token_scores"].tolist() == everything["token_scores"][:, [16, 3]].tolist()
    assert some["present.0.key"].tolist() == everything["present.0.key"][:, :, :3].tolist()


def test_inputs_and_outputs_of_a_causal_graph_are_those_of_the_contract(graph_of):
    graph = graph_of("llama")
    shapes = {value.name: value.shape for value in [*graph.session.get_inputs(), *graph.session.get_outputs()]}
    assert shapes == {
        "input_ids": ["B", "T"],
        "position_ids": ["B", "T"],
        "prefix_index": ["B"],
        "last_index": ["B"],
        "token_index": ["K"],
        "present_index": ["M"],
        "past.0.key": ["N", 2, "P", 8],
        "past.0.value": ["N", 2, "P", 8],
        "past.1.key": ["N", 2, "P", 8],
        "past.1.value": ["N", 2, "P", 8],
        "scores": ["B", 1],
        "token_scores": ["B", "K", 1],
        "present.0.key": ["B", 2, "M", 8],
        "present.0.value": ["B", 2, "M", 8],
        "present.1.key": ["B", 2, "M", 8],
        "present.1.value": ["B", 2, "M", 8],
    }


def test_inputs_and_outputs_of_an_encoder_graph_are_those_of_the_contract(graph_of):
    shapes = {value.name: value.shape for value in graph_of("bert").session.get_inputs()}
    assert shapes == {"input_ids": ["B", "T"], "attention_mask": ["B", "T"], "token_type_ids": ["B", "T"]}
    assert list(graph_of("roberta").inputs) == ["input_ids", "attention_mask"]
    assert graph_of("bert").outputs == graph_of("roberta").outputs == ["scores"]


def test_attention_is_one_native_operator_which_takes_fewer_heads_of_keys_than_of_queries(graph_of):
    model = onnx.load(graph_of("llama").path)
    assert [(each.domain, each.version) for each in model.opset_import] == [("", OPSET)]
    made_by = {name: node.op_type for node in model.graph.node for name in node.output}
    layers = [node for node in model.graph.node if node.op_type == "Attention"]
    # Keys and values as they were projected and turned: nothing repeats their heads, half as many as the queries'.
    assert [[made_by[name] for name in node.input[1:3]] for node in layers] == [["RotaryEmbedding", "Transpose"]] * 2


def test_the_graph_holds_no_trace_of_the_machine_that_made_it(graph_of):
    graph = graph_of("llama").path.read_bytes()
    for trace in (b".py", b"site-packages", b"stack_trace", b"torch.ops", str(Path.home()).encode() + b"/"):
        assert trace not in graph


def test_weights_that_would_not_fit_into_one_file_go_beside_it(graph_of, tmp_path):
    inline = graph_of("llama")
    save_graph(onnx_ir.load(inline.path), tmp_path / "model.onnx", max_inline_bytes=10_000)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.onnx", "model.onnx.data"]
    assert (tmp_path / "model.onnx").stat().st_size < inline.path.stat().st_size / 2
    beside = ort.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    expected = inline.scores([[9, 8, 7]])
    inline.session = beside
    assert inline.scores([[9, 8, 7]]) == expected


def test_what_cannot_be_traced_is_named_in_one_line(causal_checkpoint, tmp_path, monkeypatch):
    checkpoint = load_checkpoint(str(causal_checkpoint))
    monkeypatch.setattr(type(checkpoint.model.base_model), "forward", lambda self, **_: 1 / 0)
    with pytest.raises(ExportError, match=r"^LlamaForSequenceClassification cannot be traced .*division by zero$"):
        export_graph(checkpoint, tmp_path / "model.onnx")
