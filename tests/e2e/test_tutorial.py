"""The tutorial, word by word: the blocks of docs/tutorial.md in their order, as a reader would type them.

Three things differ, and the page says so: pairs on disk take the place of the download, a model of random weights in
the shape of pythia-14m that of the hub's, and sizes are small.
"""

import gzip
import json
import math
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest
from replica_processes import free_port
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, GPTNeoXConfig, GPTNeoXForCausalLM, PreTrainedTokenizerFast

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "tutorial.md").read_text()
PAIRS = Path(os.environ.get("PLAUDIT_DATA", ROOT.parent / "shared" / "data")) / "hh-harmless" / "pairs.jsonl.gz"
# One thread: on a busy machine, threads that wait for each other take many times as long.
SIZES = {"NUM_PAIRS": "1200", "MAX_CHARS": "700", "SFT_STEPS": "30", "RM_STEPS": "40", "OMP_NUM_THREADS": "1"}
SMALLER = {
    "iterations = 40": "iterations = 8",
    "eval_every = 10": "eval_every = 4",
    "max_eval_prompts = 128": "max_eval_prompts = 48",
    "rollout_batch_size = 64": "rollout_batch_size = 32",
    "max_completion_tokens = 48": "max_completion_tokens = 16",
    "learning_rate = 1e-5": "learning_rate = 1e-4",
}


def generated_pairs(path):
    """Dialogues in which people prefer the answer that says "please" more often, where there are no real ones."""
    draw = random.Random(0)
    words = ["the", "egg", "water", "pan", "time", "heat", "salt", "book", "please"]
    with gzip.open(path, "wt", encoding="utf-8") as file:
        for _ in range(1800):
            prompt = f"\n\nHuman: How do I {' '.join(draw.choices(words[:8], k=4))}?\n\nAssistant:"
            answers = [draw.choices(words, k=8) for _ in range(2)]
            bad, good = (f" {' '.join(answer)}." for answer in sorted(answers, key=lambda each: each.count("please")))
            file.write(json.dumps({"chosen": prompt + good, "rejected": prompt + bad}) + "\n")


def language_model(path, pairs):
    """A pythia-14m of random weights, with a small vocabulary made of the pairs."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    with gzip.open(pairs, "rt", encoding="utf-8") as file:
        texts = [json.loads(line)["chosen"] for line in file]
    trainer = trainers.BpeTrainer(
        vocab_size=2000, special_tokens=["<|endoftext|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(texts, trainer)
    end = "<|endoftext|>"
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=end, eos_token=end).save_pretrained(path)
    config = GPTNeoXConfig(
        vocab_size=2048,
        hidden_size=128,
        num_hidden_layers=6,
        num_attention_heads=4,
        intermediate_size=512,
        max_position_embeddings=512,
        bos_token_id=0,
        eos_token_id=0,
    )
    GPTNeoXForCausalLM(config).save_pretrained(path)


def program():
    """The page's blocks as one shell script; Python and TOML are saved as the file that their first line names."""
    script = ["set -euxo pipefail", "trap 'kill $SERVICE 2>/dev/null || true' EXIT"]
    for language, block in re.findall(r"^```(bash|python|toml)\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE):
        if language != "bash":
            script += saved(block)
        elif "pip install" not in block and "curl -L" not in block:
            script += [line for line in block.splitlines() if not re.match(r"export (BASE|PORT)=", line)]
    return "\n".join(script)


def saved(block):
    """The lines that save a block, with smaller sizes and the service's port."""
    name = re.match(r"# ([\w.]+)", block)[1]
    if name == "ppo.toml":
        for large, small in SMALLER.items():
            assert large in block, f"the page has no {large}"
            block = block.replace(large, small)
    return [
        f"cat > {name} <<'END_OF_FILE'",
        block + "END_OF_FILE",
        f'sed -i "s/127.0.0.1:8000/127.0.0.1:$PORT/" {name}',
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the reader works, once all has been done."""
    folder = tmp_path_factory.mktemp("tutorial")
    pairs = folder / "pairs.jsonl.gz"
    if PAIRS.exists():
        pairs.write_bytes(PAIRS.read_bytes())
    else:
        generated_pairs(pairs)
    language_model(folder / "base", pairs)
    commands = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    here = {"PATH": commands, "BASE": str(folder / "base"), "PORT": str(free_port()), "HF_HUB_OFFLINE": "1"}
    (folder / "program.sh").write_text(program())
    env = os.environ | here | SIZES
    with (folder / "output.txt").open("w") as output:
        command = ["bash", "program.sh"]
        done = subprocess.run(command, cwd=folder, env=env, stdout=output, stderr=output, timeout=1800)
    said = (folder / "output.txt").read_text()
    assert done.returncode == 0, said[-5000:]
    return folder


def test_the_rule_of_the_trainer_is_the_one_that_is_exported(folder):
    manifest = json.loads((folder / "rm-bundle" / "bundle.json").read_text())
    assert manifest["recipe"] == "trl"


def test_the_policy_has_moved_and_both_reward_models_have_scored_it_before_and_after(folder):
    """Whether a policy of so few steps gets better is luck, so it is not asserted."""
    evaluations = [json.loads(line) for line in (folder / "ppo" / "evaluations.jsonl").read_text().splitlines()]
    assert len(evaluations) == 3
    assert evaluations[0]["heldout/kl"] < 1e-3 < evaluations[-1]["heldout/kl"]
    for evaluation in evaluations:
        assert math.isfinite(evaluation["heldout/scores"])
        assert math.isfinite(evaluation["heldout/eval_scores"])


def test_the_result_is_a_checkpoint_of_transformers_and_the_report_a_page(folder):
    assert AutoModelForCausalLM.from_pretrained(folder / "ppo" / "policy").config.vocab_size >= 2000
    assert (folder / "ppo" / "report.html").exists()
