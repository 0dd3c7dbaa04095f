"""Language models that scale or cap their logits: scores made of logits are theirs, and no other score is scaled."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from plaudit_export.checkpoints.checkpoint import load_checkpoint
from plaudit_export.checkpoints.rules import Options
from plaudit_export.errors import SourceError
from plaudit_export.exporter import export_checkpoint
from plaudit_export.quiet import quiet
from plaudit_export.testing import tiny_causal_checkpoint
from plaudit_service.bundles.bundle import Head
from plaudit_service.serving.scorer import Scorer

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "tie_word_embeddings": False,
}
# What the logits are scaled by, and the value of it that changes nothing.
SCALES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "cohere": ({"logit_scale": 0.25}, {"logit_scale": 1.0}),
    "cohere2": ({"logit_scale": 0.25}, {"logit_scale": 1.0}),
    "granite": ({"logits_scaling": 8.0}, {"logits_scaling": 1.0}),
    "hyperclovax": ({"logits_scaling": 0.125}, {"logits_scaling": 1.0}),
    "gemma2": ({"final_logit_softcapping": 0.5}, {"final_logit_softcapping": None}),
}


def kinds(*slow: str) -> list[Any]:
    """All of them, and which are slow: an export takes seconds."""
    missing = pytest.mark.skipif("hyperclovax" not in transformers.CONFIG_MAPPING, reason="not in this transformers")
    marks = {name: [pytest.mark.slow] if name in slow else [] for name in SCALES}
    marks["hyperclovax"].append(missing)
    return [pytest.param(name, marks=marks[name]) for name in SCALES]


TEXTS = ["How do I boil an egg? Seven minutes.", "No.", "The quick brown fox jumps over the lazy dog."]
TOKENS = {7: 1.0, 9: -1.0}


@pytest.fixture(scope="module")
def language_models(tmp_path_factory: pytest.TempPathFactory, causal_checkpoint: Path) -> dict[str, Path]:
    """Made as they are asked for."""
    with quiet():
        tokenizer = transformers.AutoTokenizer.from_pretrained(causal_checkpoint)

    class Made(dict[str, Path]):
        def __missing__(self, name: str) -> Path:
            path = tmp_path_factory.mktemp("language-models") / name
            config = transformers.AutoConfig.for_model(
                name, **SIZES, **SCALES[name][0], vocab_size=328, pad_token_id=0, bos_token_id=1, eos_token_id=3
            )
            with quiet(), torch.random.fork_rng(devices=[]):
                torch.manual_seed(4)
                model = transformers.AutoModelForCausalLM.from_config(config)
                for parameter_name, parameter in model.named_parameters():
                    if parameter.dim() >= 2:
                        is_embedding = "embed" in parameter_name
                        parameter.data.normal_(std=1.0 if is_embedding else parameter.shape[-1] ** -0.5)
                model.save_pretrained(path)
                tokenizer.save_pretrained(path)
            self[name] = path
            return path

    return Made()


def ids_of(path: Path) -> list[torch.Tensor]:
    with quiet():
        tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    return [torch.tensor([tokenizer(text)["input_ids"]]) for text in TEXTS]


def logits_of(path: Path, **config: Any) -> list[torch.Tensor]:
    """The language model's own, behind each text."""
    with quiet(), torch.no_grad():
        model = transformers.AutoModelForCausalLM.from_pretrained(
            path, dtype=torch.float32, attn_implementation="eager", **config
        ).eval()
        return [model(ids).logits[0, -1] for ids in ids_of(path)]


# Cohere 2 as Cohere; Gemma 2 is among the formats.
@pytest.mark.parametrize("name", kinds("cohere2", "gemma2"))
def test_the_logits_of_tokens_are_scaled_as_the_language_model_scales_them(name, language_models, tmp_path):
    path = language_models[name]
    heads = [Head(name=f"id:{token}", weight=weight) for token, weight in TOKENS.items()]
    exported = export_checkpoint(str(path), tmp_path / "bundle", Options(token_logits=heads))
    assert exported.parity.ok
    assert exported.parity.batch_invariant
    scaled, plain = (
        [sum(weight * float(logits[token]) for token, weight in TOKENS.items()) for logits in each]
        for each in (logits_of(path), logits_of(path, **SCALES[name][1]))
    )
    assert max(abs(one - other) for one, other in zip(scaled, plain, strict=True)) > 0.1
    assert Scorer(exported.bundle).score(TEXTS).floats == pytest.approx(scaled, rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("name", kinds("cohere", "cohere2", "hyperclovax", "gemma2"))
def test_the_value_head_of_a_language_model_that_scales_its_logits_is_not_scaled(name, language_models, tmp_path):
    path = Path(shutil.copytree(language_models[name], tmp_path / "it"))
    head = torch.randn(1, SIZES["hidden_size"], generator=torch.Generator().manual_seed(1))
    file = path / "model.safetensors"
    save_file(load_file(file) | {"v_head.summary.weight": head}, file, metadata={"format": "pt"})
    with quiet(), torch.no_grad():
        model = transformers.AutoModel.from_pretrained(path, dtype=torch.float32, attn_implementation="eager").eval()
        expected = [float(model(ids).last_hidden_state[0, -1] @ head[0]) for ids in ids_of(path)]
    exported = export_checkpoint(str(path), tmp_path / "bundle")
    assert exported.parity.batch_invariant
    assert Scorer(exported.bundle).score(TEXTS).floats == pytest.approx(expected, rel=1e-5, abs=1e-5)


def test_a_classifier_is_not_capped_where_its_language_model_would_be(tmp_path):
    path = tiny_causal_checkpoint(
        tmp_path / "it", architecture="gemma2", num_hidden_layers=1, final_logit_softcapping=0.1
    )
    with quiet(), torch.no_grad():
        model = transformers.AutoModelForSequenceClassification.from_pretrained(
            path, dtype=torch.float32, attn_implementation="eager"
        ).eval()
        expected = [model(ids).logits.item() for ids in ids_of(path)]
    assert max(map(abs, expected)) > 0.1  # the cap
    exported = export_checkpoint(str(path), tmp_path / "bundle")
    assert Scorer(exported.bundle).score(TEXTS).floats == pytest.approx(expected, rel=1e-5, abs=1e-5)


def test_a_weight_that_no_rule_accounts_for_is_refused_by_name_in_a_language_model(language_models, tmp_path):
    path = Path(shutil.copytree(language_models["granite"], tmp_path / "it"))
    file = path / "model.safetensors"
    save_file(load_file(file) | {"adjust.weight": torch.ones(2)}, file, metadata={"format": "pt"})
    with pytest.raises(SourceError, match=r"adjust\.weight is a weight that .*GraniteForCausalLM leaves out"):
        load_checkpoint(str(path), token_logits=["id:7"])
