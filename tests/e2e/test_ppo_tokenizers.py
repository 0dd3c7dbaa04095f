"""PPO against a reward model with another tokenizer and another chat template: real processes, transformers' scores."""

import json
import statistics

import pytest
import torch
from ppo_runs import train_to_the_end, write_config, write_policy
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from plaudit_demo.training.models import make_causal_lm, train_policy_tokenizer
from plaudit_export.exporter import export_checkpoint
from plaudit_export.testing import tiny_causal_checkpoint
from plaudit_ppo.runs.log import read_log
from plaudit_service.bundles.bundle import Normalization
from plaudit_service.testing import running_service, score_by_hand, write_tiny_bundle

POLICY_TEMPLATE = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}<assistant>"
REWARD_MODEL_TEMPLATE = "{% for m in messages %}[{{ m['role'] | upper }}]\n{{ m['content'] }}\n{% endfor %}"
PROMPTS = [
    {"prompt": "How do I boil an egg?"},
    {"messages": [{"role": "user", "content": "Wie geht es dir?"}]},
    {"messages": [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Hello."},
        {"role": "assistant", "content": "Hello!"},
        {"role": "user", "content": "Tell me a story."},
    ]},
    {"prompt": "def add("},
]  # fmt: skip


def reference_scores(checkpoint, rows):
    """The score that transformers gives each rollout: one text at a time, tokenized and rendered by the RM's own."""
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    model = AutoModelForSequenceClassification.from_pretrained(checkpoint).eval()
    for row in rows:
        prompt = PROMPTS[row["prompt"]]
        if "messages" in prompt:
            chat = [*prompt["messages"], {"role": "assistant", "content": row["completion"]}]
            text, special = tokenizer.apply_chat_template(chat, tokenize=False), False
        else:
            text, special = prompt["prompt"] + row["completion"], True
        ids = tokenizer(text, add_special_tokens=special, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            yield model(ids).logits.item()


def test_policy_and_reward_model_with_different_tokenizers_and_templates_give_the_reward_models_own_scores(tmp_path):
    """Detail 6: text is sent, so the scores that PPO trains on are those of the checkpoint on what was written."""
    checkpoint = tiny_causal_checkpoint(tmp_path / "rm", chat_template=REWARD_MODEL_TEMPLATE)
    export_checkpoint(str(checkpoint), tmp_path / "bundle")
    tokenizer = train_policy_tokenizer([json.dumps(PROMPTS)], 300)
    tokenizer.chat_template = POLICY_TEMPLATE
    tokenizer.save_pretrained(tmp_path / "policy")
    with torch.random.fork_rng():
        make_causal_lm(tokenizer, hidden_size=32, num_layers=1, max_tokens=160, seed=0).save_pretrained(
            tmp_path / "policy"
        )
    assert len(tokenizer) != len(AutoTokenizer.from_pretrained(checkpoint))
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(prompt) + "\n" for prompt in PROMPTS))
    with running_service(tmp_path / "bundle") as service:
        config = write_config(
            tmp_path / "run.toml", policy=tmp_path / "policy", prompts=tmp_path / "prompts.jsonl",
            output=tmp_path / "run",
            scorer_urls=(service.url,), iterations=2, rollout_batch_size=8, rollout_micro_batch_size=4, temperature=1.0,
            max_completion_tokens=16, learning_rate=1e-3, sample_every=1, num_samples=8, missing_eos="off",
        )  # fmt: skip
        train_to_the_end("--config", config)
    rows = read_log(tmp_path / "run" / "samples.jsonl")
    assert {row["prompt"] for row in rows} == {0, 1, 2, 3}
    expected = list(reference_scores(checkpoint, rows))
    assert statistics.stdev(expected) > 0.1
    assert [row["score"] for row in rows] == pytest.approx(expected, abs=1e-5, rel=1e-5)
    log = read_log(tmp_path / "run" / "log.jsonl")
    assert [line["objective/scores"] for line in log] == pytest.approx(
        [statistics.fmean(expected[:8]), statistics.fmean(expected[8:])], abs=1e-5
    )


def test_scores_are_normalized_by_the_bundle_before_the_rule_for_a_missing_eos(tmp_path):
    """Details 8 and 10: (raw - mean) / std in the service; then -1 for a completion without EOS."""
    write_tiny_bundle(tmp_path / "bundle", normalization=Normalization(mean=0.5, std=2.0))
    write_policy(tmp_path / "policy")
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "so"}\n')
    with running_service(tmp_path / "bundle") as service:
        config = write_config(
            tmp_path / "run.toml", policy=tmp_path / "policy", prompts=tmp_path / "prompts.jsonl",
            output=tmp_path / "run",
            scorer_urls=(service.url,), iterations=1, rollout_batch_size=16, max_completion_tokens=4, temperature=1.0,
            num_samples=16,
        )  # fmt: skip
        train_to_the_end("--config", config)
    rows = read_log(tmp_path / "run" / "samples.jsonl")
    assert {row["finished"] for row in rows} == {True, False}
    normalized = [(score_by_hand(row["completion"]) - 0.5) / 2.0 for row in rows]
    assert [row["score"] for row in rows] == pytest.approx(normalized)
    (line,) = read_log(tmp_path / "run" / "log.jsonl")
    ruled = [score if row["finished"] else -1.0 for score, row in zip(normalized, rows, strict=True)]
    assert line["scoring/score_mean"] == pytest.approx(statistics.fmean(normalized))
    assert line["objective/scores"] == pytest.approx(statistics.fmean(ruled))
