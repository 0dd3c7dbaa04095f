"""What makes reward models score wrong without an error, through the whole export, against transformers itself."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tokenizers import AddedToken, Tokenizer, models, normalizers, processors

from plaudit_export import exporter
from plaudit_export.checkpoints.checkpoint import Checkpoint, load_checkpoint
from plaudit_export.exporter import export_checkpoint
from plaudit_export.finish import Exported
from plaudit_export.quiet import quiet
from plaudit_export.testing import tiny_causal_checkpoint, tiny_encoder_checkpoint
from plaudit_service.items import TextItem, check_request
from plaudit_service.serving.scorer import Scorer

PAD, BOS, UNK, EOS = range(4)
HEADERS = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
BOS_TEMPLATE = """\
{%- for message in messages -%}
{%- if loop.first -%}{{ bos_token }}{%- endif -%}
{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' }}
{%- endfor -%}
{{ unk_token }}{%- if sep_token is defined -%}{{ sep_token + 'never' }}{%- endif -%}"""
TEXTS = (
    "the cat",
    "Emoji 👍🏽 👩‍👩‍👧‍👦, 今天 and \ttabs\n",
    "a <verdict>good</verdict> end",
    "No.",
    "the " * 40,
)


@dataclass
class Trap:
    """A checkpoint as transformers loads it, its bundle, and the bundle served."""

    path: Path
    exported: Exported
    scorer: Scorer

    def load(self) -> tuple[Any, Any]:
        """The model and the tokenizer, by transformers alone."""
        with quiet():
            model = transformers.AutoModelForSequenceClassification.from_pretrained(self.path, dtype=torch.float32)
            return model.eval(), transformers.AutoTokenizer.from_pretrained(self.path)


def save_again(path: Path, tokenizer: Any, bias: list[float] | None = None) -> None:
    """Stores the model of a checkpoint in shards, with this tokenizer and this bias of its head."""
    with quiet():
        model = transformers.AutoModelForSequenceClassification.from_pretrained(path)
        if bias is not None:
            model.classifier.bias.data = torch.tensor(bias)
        (path / "model.safetensors").unlink()
        model.save_pretrained(path, max_shard_size="20KB")
        tokenizer.save_pretrained(path)


def byte_fallback_tokenizer() -> transformers.PreTrainedTokenizerFast:
    """A BPE like Llama 2's: "▁" for a space, and bytes for letters that it has no token for."""
    letters = ["▁", *(chr(code) for code in range(0x21, 0x7F))]
    merges = [("t", "h"), ("th", "e"), ("▁", "the"), ("a", "t")]
    pieces = ["<pad>", "<s>", "<unk>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *letters]
    vocab = {piece: index for index, piece in enumerate([*pieces, *map("".join, merges)])}
    backend = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        bos_token="<s>",
        unk_token="<unk>",
        eos_token="</s>",
        padding_side="left",
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
    )
    tokenizer.add_special_tokens({"additional_special_tokens": list(HEADERS)})
    tokenizer.add_tokens(["<verdict>", AddedToken("</verdict>", lstrip=True, rstrip=True)])
    tokenizer.chat_template = BOS_TEMPLATE
    return tokenizer


def add_bias(model: Any) -> None:
    """No decoder of transformers has a bias in its head; one that had it would compute so."""
    model.score.bias = torch.nn.Parameter(torch.tensor([0.75]))


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Trap:
    """Sharded, byte fallback, left padding, added tokens, BOS in the chat template, and a head with bias."""

    def load_with_bias(source: str, **options: Any) -> Checkpoint:
        checkpoint = load_checkpoint(source, **options)
        add_bias(checkpoint.model)
        return checkpoint

    directory = tmp_path_factory.mktemp("decoder")
    path = tiny_causal_checkpoint(directory / "it", vocab_size=400, num_hidden_layers=1)
    save_again(path, byte_fallback_tokenizer())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exporter, "load_checkpoint", load_with_bias)
        exported = export_checkpoint(str(path), directory / "bundle")
    return Trap(path, exported, Scorer(exported.bundle))


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Trap:
    """Sharded, left padding, added tokens, absolute positions, and two heads with bias."""
    directory = tmp_path_factory.mktemp("encoder")
    path = tiny_encoder_checkpoint(
        directory / "it", num_labels=2, num_hidden_layers=1, problem_type="multi_label_classification"
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(path, padding_side="left")
    tokenizer.add_tokens(["<verdict>", "</verdict>"])
    save_again(path, tokenizer, bias=[0.75, -2.0])
    exported = export_checkpoint(str(path), directory / "bundle")
    return Trap(path, exported, Scorer(exported.bundle))


@pytest.fixture(params=["decoder", "encoder"])
def trap(request: pytest.FixtureRequest) -> Trap:
    return request.getfixturevalue(request.param)


def test_sharded_weights_are_served_with_their_own_scores(trap):
    assert len(list(trap.path.glob("model-*-of-*.safetensors"))) > 1
    assert not (trap.path / "model.safetensors").exists()
    assert trap.exported.parity.ok
    assert trap.exported.parity.batch_invariant


@pytest.mark.parametrize(("kind", "bias"), [("decoder", [0.75]), ("encoder", [0.75, -2.0])])
def test_the_bias_of_a_head_is_part_of_the_served_score(kind, bias, request):
    trap = request.getfixturevalue(kind)
    model, tokenizer = trap.load()
    head = getattr(model, "score", None) or model.classifier
    if head.bias is not None:
        assert head.bias.tolist() == bias
        head.bias.data.zero_()
    for text, result in zip(TEXTS, trap.scorer.score(TEXTS, raw=True), strict=True):
        with torch.no_grad():
            without = model(**tokenizer(text, return_tensors="pt")).logits[0].tolist()
        assert result.score == pytest.approx(sum(without) + sum(bias), abs=1e-5)


def test_a_left_padding_tokenizer_does_not_move_a_served_batch(trap):
    assert trap.load()[1].padding_side == "left"
    alone = [trap.scorer.score([text]).floats[0] for text in TEXTS]
    assert trap.scorer.score(TEXTS).floats == alone
    assert len(set(alone)) == len(TEXTS)


def test_a_decoders_left_padded_batch_in_transformers_has_the_served_scores(decoder):
    model, tokenizer = decoder.load()
    add_bias(model)
    batch = tokenizer(list(TEXTS), padding=True, return_tensors="pt")
    assert batch["input_ids"][0, 0] == PAD
    with torch.no_grad():
        expected = model(**batch).logits[:, 0].tolist()
    # Left padding moves the positions of transformers' rotary embedding, whose rounding then differs.
    assert decoder.scorer.score(TEXTS).floats == pytest.approx(expected, abs=1e-4)


def test_letters_without_a_token_become_their_bytes(decoder):
    ids = served_ids(decoder, "a👍")
    bytes_of = [4 + byte for byte in "👍".encode()]
    assert ids[0] == BOS
    assert ids[-4:] == bytes_of
    tokenizer = decoder.load()[1]
    for text in TEXTS:
        assert served_ids(decoder, text) == tokenizer(text)["input_ids"]
        assert UNK not in tokenizer(text)["input_ids"]


def test_added_tokens_are_one_token_each_and_strip_as_in_transformers(trap):
    tokenizer = trap.load()[1]
    text = "a <verdict> good  </verdict>  end <verdict>"
    ids = served_ids(trap, text)
    verdict, end = tokenizer.convert_tokens_to_ids(["<verdict>", "</verdict>"])
    assert ids == tokenizer(text)["input_ids"]
    assert [each for each in ids if each in {verdict, end}] == [verdict, end, verdict]


def test_a_chat_template_with_bos_gives_one_bos_and_whole_header_tokens(decoder):
    tokenizer = decoder.load()[1]
    headers = tokenizer.convert_tokens_to_ids(list(HEADERS))
    chats = [record for record in decoder.exported.bundle.golden if "messages" in record.item]
    assert len(chats) == 5
    for record in chats:
        chat = record.item["messages"]
        assert list(record.token_ids) == tokenizer.apply_chat_template(chat, return_dict=True)["input_ids"]
        assert record.token_ids.count(BOS) == 1
        assert [record.token_ids.count(header) for header in headers] == [len(chat)] * 3


def test_a_chat_template_gets_the_special_tokens_that_it_names_and_no_others(decoder):
    bundle = decoder.exported.bundle
    assert bundle.scoring.template_tokens == {"unk_token": "<unk>"}
    chats = [record for record in bundle.golden if "messages" in record.item]
    assert {record.token_ids[-1] for record in chats} == {UNK}
    chat = [{"role": "user", "content": "Hi"}]
    expected = decoder.load()[1].apply_chat_template(chat, return_dict=True)["input_ids"]
    tokenization = decoder.scorer.model.tokenization
    (served,) = tokenization.tokenize(check_request({"items": [{"messages": chat}]}).items)
    assert served.token_ids.tolist() == expected


def test_the_soft_cap_of_attention_is_computed_whatever_transformers_computes_by_default(tmp_path):
    """sdpa leaves it out in transformers 4; in 5 these models take eager attention by themselves."""
    path = tiny_causal_checkpoint(tmp_path / "it", architecture="gemma2", attn_logit_softcapping=1.0)
    exported = export_checkpoint(str(path), tmp_path / "bundle")
    assert exported.bundle.manifest.source.attention == "eager"
    with quiet():
        model, other = (
            transformers.AutoModelForSequenceClassification.from_pretrained(
                path, dtype=torch.float32, attn_implementation="eager", attn_logit_softcapping=cap
            ).eval()
            for cap in (1.0, None)
        )
        tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    with torch.no_grad():
        ids = [torch.tensor([tokenizer(text)["input_ids"]]) for text in TEXTS]
        expected, uncapped = ([each(one).logits.item() for one in ids] for each in (model, other))
    assert Scorer(exported.bundle).score(TEXTS).floats == pytest.approx(expected, abs=1e-5)
    assert max(abs(one - two) for one, two in zip(expected, uncapped, strict=True)) > 0.1


def test_gemma_3_with_its_images_wrapper_has_the_scores_of_the_wrapper(tmp_path):
    text = tiny_causal_checkpoint(tmp_path / "text", architecture="gemma3_text")
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    with quiet(), torch.no_grad():
        inner = transformers.AutoModelForSequenceClassification.from_pretrained(text)
        config = transformers.Gemma3Config(
            text_config=inner.config.to_dict(),
            vision_config=vision | {"image_size": 28, "patch_size": 14},
            mm_tokens_per_image=4,
            num_labels=1,
            id2label={0: "helpful"},
            boi_token_index=320,
            eoi_token_index=321,
            image_token_index=322,
        )
        model = transformers.Gemma3ForSequenceClassification(config).eval()
        model.model.language_model.load_state_dict(inner.model.state_dict())
        model.score.load_state_dict(inner.score.state_dict())
        model.save_pretrained(tmp_path / "it")
        tokenizer = transformers.AutoTokenizer.from_pretrained(text)
        tokenizer.save_pretrained(tmp_path / "it")
        ids = [torch.tensor([tokenizer(text)["input_ids"]]) for text in TEXTS]
        expected = [model(one).logits.item() for one in ids]
    exported = export_checkpoint(str(tmp_path / "it"), tmp_path / "bundle")
    assert exported.bundle.manifest.source.architecture == "Gemma3ForSequenceClassification"
    assert [head.name for head in exported.bundle.scoring.heads] == ["helpful"]
    assert Scorer(exported.bundle).score(TEXTS).floats == pytest.approx(expected, abs=1e-5)
    assert exported.parity.batch_invariant
    # The images' weights stay out of the graph.
    assert (tmp_path / "bundle" / "model.onnx").stat().st_size < (tmp_path / "it" / "model.safetensors").stat().st_size


def served_ids(trap: Trap, text: str) -> list[int]:
    """What the service makes of a text."""
    tokenization = trap.scorer.model.tokenization
    items = [TextItem(text=text)]
    return tokenization.tokenize(items)[0].token_ids.tolist()
