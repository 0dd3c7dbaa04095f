import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from plaudit_export import cli
from plaudit_export.checkpoints.checkpoint import load_checkpoint
from plaudit_export.checkpoints.rules import Options, TextFile
from plaudit_export.engine_checkpoint import check_loadable, label_notes, weights_hashes
from plaudit_export.errors import SourceError
from plaudit_export.exporter import export_checkpoint
from plaudit_service.bundles.bundle import fingerprint, load_bundle, sha256_of
from plaudit_service.errors import BundleError
from plaudit_service.serving.scorer import Scorer

TEXTS = [{"text": "so good"}, {"text": "the quick brown fox"}, {"text": "how do I boil an egg?"}]


@pytest.fixture(scope="module")
def bundle(causal_checkpoint, tmp_path_factory):
    options = Options(engine="vllm", normalize_on=TextFile(TEXTS, "0" * 64))
    return export_checkpoint(str(causal_checkpoint), tmp_path_factory.mktemp("engine") / "bundle", options).bundle


def test_a_bundle_for_an_engine_holds_no_graph_and_has_the_references_and_rules_of_one_that_does(bundle, causal_bundle):
    with_graph = causal_bundle.bundle
    names = {path.name for path in with_graph.path.iterdir()}
    assert {path.name for path in bundle.path.iterdir()} == names - {"model.onnx"}
    assert [record.score for record in bundle.golden] == [record.score for record in with_graph.golden]
    assert bundle.manifest.tolerance == 1e-4
    differing = {name for name, value in bundle.scoring if value != getattr(with_graph.scoring, name)}
    assert differing == {"engine", "weights", "sha256", "normalization"}
    by_graph = Scorer(with_graph).score(TEXTS, raw=True).floats
    assert bundle.scoring.normalization.mean == pytest.approx(sum(by_graph) / len(by_graph), abs=1e-5)


def test_the_fingerprint_covers_the_weights_and_the_config(bundle, causal_checkpoint):
    scoring = bundle.scoring
    assert scoring.weights == {
        name: sha256_of(causal_checkpoint / name) for name in ("config.json", "model.safetensors")
    }
    for name in scoring.weights:
        others = scoring.model_copy(update={"weights": scoring.weights | {name: "0" * 64}})
        assert fingerprint(others) != bundle.fingerprint


def test_no_other_runtime_serves_a_bundle_without_a_graph(bundle):
    with pytest.raises(BundleError, match=r"has no graph, it is for vllm; serve it with --runtime vllm"):
        Scorer(load_bundle(bundle.path))


def test_a_makers_copy_of_the_weights_is_none_of_what_the_engine_loads(tmp_path):
    for name in ("config.json", "model-00001-of-00002.safetensors", "consolidated.safetensors", "tokenizer.json"):
        (tmp_path / name).write_text("{}")
    assert weights_hashes(str(tmp_path)).keys() == {"config.json", "model-00001-of-00002.safetensors"}
    assert "add {" in label_notes(str(tmp_path))[0]


@pytest.mark.parametrize(("adapter", "foreign", "told"), [
    (object(), None, "is an adapter, but --engine vllm needs a whole checkpoint; merge the adapter"),
    (None, object(), r"OpenRLHF is not a \*ForSequenceClassification model .* export it without --engine"),
])  # fmt: skip
def test_what_no_engine_loads_as_it_is_is_refused(adapter, foreign, told):
    with pytest.raises(SourceError, match=told):
        check_loadable(SimpleNamespace(id="it", adapter=adapter, foreign=foreign, format_name="OpenRLHF"))


@pytest.mark.parametrize(("flags", "told"), [
    (["--precision", "bf16"], "the engine's own --dtype says in which precision it computes"),
    (["--pair"], "--engine vllm --pair: vLLM gets the token ids of one text"),
    (["--token-logits", "Yes"], "--engine vllm --token-logits: vLLM gets the token ids"),
])  # fmt: skip
def test_what_an_engine_cannot_compute_is_refused_before_anything_is_loaded(flags, told, tmp_path, capsys):
    assert cli.main(["checkpoint", "nowhere", str(tmp_path / "bundle"), "--engine", "vllm", *flags]) == 2
    assert told in capsys.readouterr().err


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux where memory comes from")
def test_weights_in_bfloat16_are_mapped_from_a_copy_in_float32_and_are_the_same_numbers(causal_checkpoint, tmp_path):
    checkpoint, copies = Path(shutil.copytree(causal_checkpoint, tmp_path / "checkpoint")), tmp_path / "copies"
    copies.mkdir()
    weights = {name: weight.bfloat16() for name, weight in load_file(checkpoint / "model.safetensors").items()}
    save_file(weights, checkpoint / "model.safetensors", {"format": "pt"})
    read = load_checkpoint(str(checkpoint)).model.state_dict()
    mapped = load_checkpoint(str(checkpoint), copies_in=copies).model.state_dict()
    assert read.keys() == mapped.keys()
    for name, weight in mapped.items():
        assert (weight.dtype, torch.equal(weight, read[name])) == (torch.float32, True)
        assert (mapped_file(weight), mapped_file(read[name])) == (str(copies / "model.safetensors"), None)


def mapped_file(weight):
    """The file that the memory of a tensor is mapped from; None: it is none's."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        addresses, *_, file = f"{line} ".split(" ", 5)
        start, end = (int(address, 16) for address in addresses.split("-"))
        if start <= weight.data_ptr() < end:
            return file.strip() if "/" in file else None
    return None


def test_the_command_says_that_no_score_was_checked(encoder_checkpoint, tmp_path, capsys):
    assert cli.main(["checkpoint", str(encoder_checkpoint), str(tmp_path / "bundle"), "--engine", "vllm"]) == 0
    assert "no score was served yet; plaudit-serve checks the engine's at its start" in capsys.readouterr().err
    assert load_bundle(tmp_path / "bundle").scoring.kind == "encoder"
