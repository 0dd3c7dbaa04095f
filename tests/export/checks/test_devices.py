"""The reference model on a device that holds one layer at a time; torch's `meta` stands for one."""

from contextlib import nullcontext

import pytest
import torch
import transformers
from torch import nn

from plaudit_export.checkpoints.checkpoint import load_checkpoint
from plaudit_export.checkpoints.rules import Options
from plaudit_export.checks.devices import computing_on
from plaudit_export.cli import main
from plaudit_export.exporter import export_checkpoint


@pytest.fixture(autouse=True)
def nothing_to_autocast_on_meta(monkeypatch):
    """transformers 4 turns autocast off by the device's name, which torch takes of every device but `meta`."""
    autocast = torch.autocast
    monkeypatch.setattr(
        torch,
        "autocast",
        lambda device_type, **said: nullcontext() if device_type == "meta" else autocast(device_type, **said),
    )


def devices(module: nn.Module) -> set[str]:
    return {tensor.device.type for tensor in [*module.parameters(), *module.buffers()]}


without_values = pytest.mark.skipif(
    transformers.__version__ < "5",
    reason="transformers 4 looks whether its encoders' ids are padded; `meta` has no values",
)


@pytest.mark.parametrize("kind", ["causal", pytest.param("encoder", marks=without_values)])
def test_a_model_computes_on_the_device_and_has_one_layer_there_at_a_time(kind, request):
    model = load_checkpoint(str(request.getfixturevalue(f"{kind}_checkpoint"))).model
    before = dict(model.named_parameters())
    (layers,) = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    seen: list[list[set[str]]] = []
    for layer in layers:
        layer.register_forward_hook(lambda *_: seen.append([devices(each) for each in layers]), prepend=True)
    with computing_on(model, "meta"), torch.no_grad():
        logits = model(input_ids=torch.zeros(1, 5, dtype=torch.int64, device="meta")).logits
    assert logits.device.type == "meta"
    assert seen == [[{"meta"}, {"cpu"}], [{"cpu"}, {"meta"}]]
    assert devices(model) == {"cpu"}
    assert all(parameter is before[name] for name, parameter in model.named_parameters())


def test_a_text_that_fails_within_a_layer_leaves_the_model_on_the_cpu(causal_checkpoint):
    def fail(*_: object) -> None:
        raise RuntimeError("out of memory")

    model = load_checkpoint(str(causal_checkpoint)).model
    model.model.layers[1].mlp.register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="out of memory"), computing_on(model, "meta"):
        model(input_ids=torch.zeros(1, 5, dtype=torch.int64, device="meta"))
    assert devices(model) == {"cpu"}


def test_a_device_that_is_not_there_is_refused(causal_checkpoint, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    arguments = ["checkpoint", str(causal_checkpoint), str(tmp_path / "bundle"), "--device"]
    assert main([*arguments, "cuda:1"]) == 2
    assert "--device cuda:1: torch" in (told := capsys.readouterr().err)
    assert "sees 1 CUDA devices" in told
    with pytest.raises(SystemExit) as refused:
        main([*arguments, "tpu"])
    assert refused.value.code == 2
    assert "'tpu' is not cpu, cuda or cuda:N" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_reference_scores_are_computed_on_the_device_that_is_asked_for(causal_checkpoint, tmp_path, monkeypatch):
    asked: list[str] = []

    def stop(_: nn.Module, device: str) -> None:
        asked.append(device)
        raise KeyboardInterrupt

    monkeypatch.setattr("plaudit_export.exporter.computing_on", stop)
    with pytest.raises(KeyboardInterrupt):
        export_checkpoint(str(causal_checkpoint), tmp_path / "bundle", Options(device="cuda:3"))
    assert asked == ["cuda:3"]
