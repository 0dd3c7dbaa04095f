"""Checkpoints that the trainers' own code writes are served with the scores that the trainers' own code gives.

Each trainer runs in a process of its own, as its packages have it and with the torch and transformers that are
installed here; what stands in for packages that are not is said in the program that runs it. Where a package cannot be
downloaded, its tests are skipped.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
import trl
from datasets import Dataset
from trainer_texts import CHAT, TEXTS

from plaudit_export.exporter import export_checkpoint
from plaudit_export.testing import tiny_causal_checkpoint
from plaudit_service.serving.scorer import Scorer

pytestmark = pytest.mark.slow

OPENRLHF = "openrlhf==0.11.2"
LLAMAFACTORY = "llamafactory==0.9.5"
TRL = "trl==0.24.0"  # the newest that LLaMA-Factory takes, and one that still has its value head


@pytest.fixture
def classifier(tmp_path):
    return tiny_causal_checkpoint(tmp_path / "classifier", add_bos=True, num_hidden_layers=1)


@pytest.fixture
def language_model(classifier, tmp_path):
    """Of the same decoder."""
    model = transformers.AutoModelForCausalLM.from_pretrained(classifier)
    model.save_pretrained(tmp_path / "language-model")
    transformers.AutoTokenizer.from_pretrained(classifier).save_pretrained(tmp_path / "language-model")
    return tmp_path / "language-model"


@pytest.fixture
def run_trainer(download, tmp_path):
    """Runs a program of this folder where packages can be imported; gives the checkpoint that it wrote, and scores."""

    def run(requirements, program, base, *arguments):
        packages = dict.fromkeys(str(download(requirement)) for requirement in requirements)
        path = os.pathsep.join([*packages, os.environ.get("PYTHONPATH", "")])
        # Nothing is looked up on a network, and a GPU, which computes other digits, is not used.
        env = os.environ | {"PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
        output = tmp_path / "trained"
        command = [sys.executable, Path(__file__).with_name(program), base, output, *arguments]
        done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
        return output, json.loads((tmp_path / "trained.json").read_text())

    return run


def assert_served(checkpoint, items, references, format_):
    exported = export_checkpoint(str(checkpoint), checkpoint.with_name("bundle"))
    assert exported.parity.ok
    assert exported.bundle.manifest.source.format == format_
    assert len({round(reference, 4) for reference in references}) == len(items)  # a rule's mistake would be seen
    for item, reference, result in zip(items, references, Scorer(exported.bundle).score(items), strict=True):
        assert result.score is not None, result
        assert abs(result.score - reference) <= 1e-5 * max(1, abs(reference)), item


@pytest.mark.parametrize("prefix", ["score", "value_head"])
def test_openrlhfs_own_reward_model_is_served_with_its_own_scores(run_trainer, classifier, prefix):
    items = json.dumps([*TEXTS, CHAT])
    checkpoint, references = run_trainer([OPENRLHF], "openrlhf_reward_model.py", classifier, prefix, items)
    assert_served(checkpoint, [*TEXTS, {"messages": CHAT}], references, "OpenRLHF")


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_the_reward_model_of_llamafactorys_own_training_is_served_with_its_own_scores(
    run_trainer, language_model, kind
):
    program = "llamafactory_reward_model.py"
    checkpoint, references = run_trainer([LLAMAFACTORY, TRL], program, language_model, kind, json.dumps(TEXTS))
    assert (checkpoint / "value_head.safetensors").is_file()
    assert_served(checkpoint, TEXTS, references, "LLaMA-Factory")


def test_trls_own_value_head_is_served_with_its_own_scores(run_trainer, language_model):
    checkpoint, references = run_trainer([TRL], "trl_value_head.py", language_model, json.dumps(TEXTS))
    assert_served(checkpoint, TEXTS, references, "TRL value head")


PAIRS = {
    "texts": [{"prompt": "Boil an egg.", "chosen": " Seven minutes.\n", "rejected": " I cannot.<|im_end|>"}],
    "chats": [{"prompt": CHAT[:1], "chosen": CHAT[1:], "rejected": [{"role": "assistant", "content": "I cannot.\n"}]}],
}


@pytest.mark.parametrize("kind", PAIRS)
@pytest.mark.filterwarnings("default")  # torch's and TRL's own
def test_the_classifier_of_trls_own_training_is_served_with_the_scores_of_its_training(classifier, tmp_path, kind):
    trainer = trl.RewardTrainer(
        model=transformers.AutoModelForSequenceClassification.from_pretrained(classifier, dtype=torch.float32),
        args=trl.RewardConfig(
            output_dir=str(tmp_path / "trained"),
            max_steps=2,
            learning_rate=0.01,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            use_cpu=True,
            bf16=False,
        ),
        train_dataset=Dataset.from_list(PAIRS[kind] * 4),
        processing_class=transformers.AutoTokenizer.from_pretrained(classifier),
    )
    trainer.train()
    trainer.save_model()
    (pair, *_), (trained, *_) = PAIRS[kind], trainer.train_dataset
    answers = "chosen", "rejected"
    items = [{"prompt": pair["prompt"], "completion": pair[answer]} for answer in answers]
    if kind == "chats":
        items = [{"messages": pair["prompt"] + pair[answer]} for answer in answers]
    model = trainer.model.eval()
    with torch.no_grad():
        references = [model(torch.tensor([trained[f"{answer}_ids"]])).logits.item() for answer in answers]
    assert_served(tmp_path / "trained", items, references, None)
