import pytest
import torch
from transformers import AutoModelForSequenceClassification

from plaudit_demo.data.preferences import Pair
from plaudit_demo.training.models import make_sequence_classifier, train_reward_model_tokenizer
from plaudit_demo.training.reward_model import pair_accuracy, score_texts, train_reward_model
from plaudit_export.checkpoints.checkpoint import load_checkpoint
from plaudit_export.checkpoints.rules import Options, derive_rules

PAIRS = [
    Pair(f"Review {number}:", " It was clean and good.", " It was dirty.", 1.0, 0.0) for number in ("a", "b", "c", "d")
] * 8


def trained(tmp_path):
    tokenizer = train_reward_model_tokenizer([pair.prompt + pair.chosen + pair.rejected for pair in PAIRS])
    model = make_sequence_classifier(tokenizer, hidden_size=16, num_layers=1, max_tokens=32, seed=1)
    losses = []
    train_reward_model(
        model,
        tokenizer,
        PAIRS,
        num_epochs=3,
        batch_size=8,
        learning_rate=5e-3,
        seed=1,
        output=tmp_path,
        on_step=losses.append,
    )
    return model, tokenizer, losses


def test_it_learns_what_is_preferred_and_reports_every_step(tmp_path):
    model, tokenizer, losses = trained(tmp_path)
    assert len(losses) == 3 * 4
    assert losses[-1] < 0.3 < 0.6 < losses[0]
    assert pair_accuracy(model, tokenizer, PAIRS) == 1
    swapped = [Pair(pair.prompt, pair.rejected, pair.chosen, 0.0, 1.0) for pair in PAIRS]
    assert pair_accuracy(model, tokenizer, swapped) == 0


def test_what_is_saved_says_that_trl_trained_it_with_eos(tmp_path):
    model, tokenizer, _ = trained(tmp_path)
    files = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "training_args.bin"}
    assert {path.name for path in tmp_path.iterdir()} == files
    saved = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert score_texts(saved, tokenizer, ["It was clean."]) == score_texts(model, tokenizer, ["It was clean."])
    checkpoint = load_checkpoint(str(tmp_path))
    assert derive_rules(checkpoint, Options()).recipe == "trl"


def test_the_loss_is_that_of_bradley_terry(tmp_path):
    """Detail 7: mean of -log sigmoid(chosen - rejected), by hand for the first batch, before any step."""
    tokenizer = train_reward_model_tokenizer([pair.prompt + pair.chosen + pair.rejected for pair in PAIRS])
    model = make_sequence_classifier(tokenizer, hidden_size=16, num_layers=1, max_tokens=32, seed=1)
    distinct = PAIRS[:4]
    chosen, rejected = (
        torch.tensor(score_texts(model, tokenizer, [pair.prompt + getattr(pair, side) for pair in distinct]))
        for side in ("chosen", "rejected")
    )
    expected = -torch.nn.functional.logsigmoid(chosen - rejected).mean()
    losses = []
    train_reward_model(
        model, tokenizer, distinct, num_epochs=1, batch_size=4, learning_rate=1e-9, seed=1, output=tmp_path,
        on_step=losses.append,
    )  # fmt: skip
    assert losses == [pytest.approx(expected.item(), abs=1e-4)]


def test_two_trainings_give_the_same_bits(tmp_path):
    one, other = (trained(tmp_path)[0].state_dict() for _ in range(2))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_score_is_that_of_the_text_with_eos_alone(tmp_path):
    model, tokenizer, _ = trained(tmp_path)
    texts = ["Review a: It was clean.", "It was dirty and good and clean."]
    alone = []
    for text in texts:
        ids = torch.tensor([[*tokenizer(text)["input_ids"], tokenizer.eos_token_id]])
        alone.append(model(input_ids=ids).logits.item())
    assert score_texts(model, tokenizer, texts) == pytest.approx(alone, abs=1e-5)
