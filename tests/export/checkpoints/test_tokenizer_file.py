"""`tokenizer.json` as it lies on disk is what is exported, whatever class transformers takes it for."""

import importlib.util
import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from plaudit_export.checkpoints.checkpoint import load_checkpoint, load_tokenizer
from plaudit_export.checkpoints.tokenizer_file import adapters_tokenizer
from plaudit_export.errors import SourceError
from plaudit_export.exporter import export_checkpoint
from plaudit_export.testing import CORPUS, tiny_causal_checkpoint, tiny_encoder_checkpoint
from plaudit_service.bundles.bundle import REPORT
from plaudit_service.serving.scorer import Scorer

TEXTS = ("the quick fox", "Straße, e\u0301 und \u00e9", "in 1234567 steps\n\n", "a\tb   c", "He said: </s> <s>")
REBUILT_BY_TRANSFORMERS_5 = pytest.mark.skipif(
    int(transformers.__version__.split(".")[0]) < 5, reason="only transformers 5 rebuilds a tokenizer from its class"
)


def word_piece() -> Tokenizer:
    """Lower-casing words and letters; EOS and PAD are its last tokens."""
    letters = [chr(code) for code in range(0x21, 0x7F)]
    words = ["the", "quick", "fox", "steps"]
    pieces = ["[UNK]", *letters, *(f"##{letter}" for letter in letters), *words, "</s>", "<pad>"]
    tokenizer = Tokenizer(models.WordPiece({piece: at for at, piece in enumerate(pieces)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.add_special_tokens(["</s>", "<pad>"])
    return tokenizer


def byte_level(digits: str = r"\p{N}", *, trim_offsets: bool = False) -> Tokenizer:
    """A BPE with Qwen2's regular expression, which takes as many digits for one piece as `digits` says."""
    tokenizer = Tokenizer(models.BPE(continuing_subword_prefix="", end_of_word_suffix=""))
    pattern = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|" + digits + r"| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    tokenizer.normalizer = normalizers.NFC()
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=trim_offsets, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), bytes_])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=trim_offsets)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<|endoftext|>", "</s>", "<pad>"]
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([*CORPUS, "12345 12345 123 123 1234567 1234567"], trainer)
    return tokenizer


def spaced() -> Tokenizer:
    """A byte-level BPE that puts a space before a text, which no config beside it repeats."""
    tokenizer = byte_level()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    return tokenizer


def put(tokenizer: Tokenizer, checkpoint: Path, **config: object) -> Path:
    """Replaces the checkpoint's tokenizer by this one, and its tokenizer_config.json by these fields."""
    for name in ("special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt"):
        (checkpoint / name).unlink(missing_ok=True)
    tokenizer.save(str(checkpoint / "tokenizer.json"))
    fields = {"eos_token": "</s>", "pad_token": "<pad>", **config}
    (checkpoint / "tokenizer_config.json").write_text(json.dumps(fields))
    model = json.loads((checkpoint / "config.json").read_text())
    model |= {"pad_token_id": tokenizer.token_to_id("<pad>"), "eos_token_id": tokenizer.token_to_id("</s>")}
    (checkpoint / "config.json").write_text(json.dumps(model))
    return checkpoint


@pytest.fixture(scope="module")
def qwen2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_causal_checkpoint(tmp_path_factory.mktemp("qwen2") / "it", architecture="qwen2", num_hidden_layers=1)


@pytest.fixture
def checkpoint(qwen2: Path, tmp_path: Path) -> Path:
    """A Qwen2-shaped reward model of one layer, whose tokenizer a test replaces."""
    return Path(shutil.copytree(qwen2, tmp_path / "checkpoint"))


@pytest.mark.parametrize("named", ["Qwen2Tokenizer", "LlamaTokenizer", "GPT2TokenizerFast", "PreTrainedTokenizerFast"])
@pytest.mark.parametrize("kind", [word_piece, byte_level, spaced])
def test_the_ids_are_those_of_the_file_whatever_class_its_config_names(kind, named, checkpoint):
    put(kind(), checkpoint, tokenizer_class=named)
    tokenizer = load_checkpoint(str(checkpoint)).tokenizer
    file = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    assert [tokenizer(text)["input_ids"] for text in TEXTS] == [file.encode(text).ids for text in TEXTS]
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id) == (file.token_to_id("</s>"), file.token_to_id("<pad>"))


def test_an_encoders_ids_are_those_of_its_file_too(tmp_path):
    checkpoint = tiny_encoder_checkpoint(tmp_path)
    file = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    file.normalizer = normalizers.BertNormalizer(lowercase=True, strip_accents=False)
    put(file, checkpoint, tokenizer_class="BertTokenizer", eos_token=None, pad_token="[PAD]", cls_token="[CLS]")
    tokenizer = load_checkpoint(str(checkpoint)).tokenizer
    assert [tokenizer(text)["input_ids"] for text in TEXTS] == [file.encode(text).ids for text in TEXTS]
    assert tokenizer("a", "b")["token_type_ids"] == file.encode("a", "b").type_ids


def test_the_served_score_is_that_of_the_files_ids_and_the_export_says_what_differs(checkpoint, tmp_path):
    put(word_piece(), checkpoint)
    notes: list[str] = []
    bundle = export_checkpoint(str(checkpoint), tmp_path / "bundle", note=notes.append).bundle
    file = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    model = transformers.AutoModelForSequenceClassification.from_pretrained(checkpoint, dtype=torch.float32).eval()
    with torch.no_grad():
        expected = [model(torch.tensor([file.encode(text).ids])).logits.item() for text in TEXTS]
    assert Scorer(bundle).score(TEXTS).floats == pytest.approx(expected, abs=1e-5)
    for record in bundle.golden:
        if "text" in record.item:
            assert list(record.token_ids) == file.encode(record.item["text"]).ids
    assert json.loads((bundle.path / REPORT).read_text())["notes"] == notes
    if transformers.__version__.startswith("5."):
        assert any("AutoTokenizer" in n and "a Qwen2Tokenizer that gives other token ids for " in n for n in notes)


@REBUILT_BY_TRANSFORMERS_5
def test_a_difference_that_no_golden_text_shows_is_still_decided_for_the_file(checkpoint):
    """Runs of three digits: Qwen2's class takes every digit for a piece of its own."""
    put(byte_level(r"\p{N}{1,3}"), checkpoint, tokenizer_class="Qwen2Tokenizer")
    loaded = load_tokenizer(str(checkpoint))
    file = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    assert loaded.taken("12345")["input_ids"] == file.encode("12345").ids
    assert loaded.auto("12345")["input_ids"] != file.encode("12345").ids


@pytest.mark.parametrize("trim_offsets", [True, False])
def test_a_tokenizer_that_transformers_builds_alike_keeps_the_bytes_that_transformers_gives_it(
    trim_offsets, checkpoint
):
    """What only moves offsets differs in the bytes, and the fingerprints of such bundles must not change."""
    put(byte_level(trim_offsets=trim_offsets), checkpoint, tokenizer_class="Qwen2Tokenizer")
    loaded = load_tokenizer(str(checkpoint))
    auto = transformers.AutoTokenizer.from_pretrained(checkpoint)
    assert loaded.taken.backend_tokenizer.to_str() == auto.backend_tokenizer.to_str()
    assert (loaded.auto, loaded.notes) == (None, ())


def test_a_special_token_of_the_class_alone_is_none(checkpoint):
    put(word_piece(), checkpoint, tokenizer_class="Qwen2Tokenizer")
    tokenizer = load_checkpoint(str(checkpoint)).tokenizer
    assert len(tokenizer) == word_piece().get_vocab_size()
    assert (tokenizer.bos_token, tokenizer.unk_token) == (None, None)


@pytest.mark.parametrize(
    ("config", "leading", "trailing"),
    [
        ({}, [], []),
        ({"add_bos_token": True}, ["<s>"], []),
        ({"add_bos_token": True, "add_eos_token": True}, ["<s>"], ["</s>"]),
        ({"add_eos_token": True}, [], ["</s>"]),
        ({"add_bos_token": False, "add_eos_token": False}, [], []),
        ({"add_bos_token": None}, [], []),
    ],
)
def test_bos_and_eos_that_tokenizer_config_asks_for_are_added_and_told(config, leading, trailing, checkpoint):
    file = word_piece()
    file.add_special_tokens(["<s>"])
    put(file, checkpoint, bos_token="<s>", tokenizer_class="LlamaTokenizerFast", **config)
    loaded = load_tokenizer(str(checkpoint))
    ids = [*map(file.token_to_id, leading), *file.encode("the fox").ids, *map(file.token_to_id, trailing)]
    assert loaded.taken("the fox")["input_ids"] == ids
    if leading or trailing:
        (note,) = loaded.notes
        assert f"a text becomes {' '.join([*leading, 'text', *trailing])}" in note
        assert "by tokenizer.json alone it would be text" in note
    else:
        assert loaded.notes == ()


def test_bos_that_tokenizer_config_forbids_is_not_added_and_the_eos_of_the_file_stays(checkpoint):
    file = word_piece()
    file.add_special_tokens(["<s>"])
    ends = [("<s>", file.token_to_id("<s>")), ("</s>", file.token_to_id("</s>"))]
    file.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=ends)
    put(file, checkpoint, bos_token="<s>", add_bos_token=False)
    loaded = load_tokenizer(str(checkpoint))
    assert loaded.taken("the fox")["input_ids"] == file.encode("the fox").ids[1:]
    assert "a text becomes text </s>, by tokenizer.json alone it would be <s> text </s>" in loaded.notes[0]


def test_added_tokens_of_tokenizer_config_are_added_and_told(checkpoint):
    file = word_piece()
    first = file.get_vocab_size()
    flags = {"lstrip": False, "rstrip": True, "normalized": False, "single_word": False, "special": False}
    added = {str(first): {"content": "<verdict>", **flags}}
    put(file, checkpoint, tokenizer_class="Qwen2Tokenizer", added_tokens_decoder=added)
    loaded = load_tokenizer(str(checkpoint))
    assert loaded.taken("the <verdict>  fox")["input_ids"] == [*file.encode("the").ids, first, *file.encode("fox").ids]
    assert any("adds tokens to tokenizer.json" in note and "'<verdict>'" in note for note in loaded.notes)


def test_an_added_token_that_cannot_have_its_id_is_refused_and_one_of_the_file_keeps_the_files(checkpoint):
    file = word_piece()
    flags = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False, "special": True}
    put(file, checkpoint, added_tokens_decoder={"7": {"content": "</s>", **flags}})
    loaded = load_tokenizer(str(checkpoint))
    assert loaded.taken("</s>")["input_ids"] == [file.token_to_id("</s>")]
    assert any(f"gives '</s>' the id 7, tokenizer.json the id {file.token_to_id('</s>')}" in n for n in loaded.notes)
    put(file, checkpoint, added_tokens_decoder={"7": {"content": "<verdict>", **flags}})
    with pytest.raises(SourceError, match=r"gives '<verdict>' the id 7, .*correct one of them") as raised:
        load_tokenizer(str(checkpoint))
    assert "\n" not in str(raised.value)


@pytest.mark.skipif(importlib.util.find_spec("sentencepiece") is not None, reason="sentencepiece is installed")
@pytest.mark.parametrize("name", ["tokenizer.model", "spm.model"])
def test_a_sentencepiece_model_alone_asks_for_sentencepiece(name, checkpoint):
    (checkpoint / "tokenizer.json").unlink()
    (checkpoint / name).write_bytes(b"\n\x0e\n\x05<unk>")
    with pytest.raises(SourceError, match=rf"{name}.* needs sentencepiece: pip install sentencepiece") as raised:
        load_checkpoint(str(checkpoint))
    assert "tiktoken" not in str(raised.value)


VOCABULARY = {"<s>": 0, "</s>": 1, "<pad>": 2, "the": 3, "fox": 4, "t": 5, "h": 6, "e": 7, "th": 8}


@pytest.mark.parametrize("config", [{"add_bos_token": False}, {"add_eos_token": False}, {"add_eos_token": True}])
@pytest.mark.parametrize(
    ("model", "ids"),
    [(models.WordLevel(VOCABULARY), [3, 4]), (models.BPE(VOCABULARY, [("t", "h"), ("th", "e")]), [3])],
)
def test_bos_and_eos_are_found_also_where_a_has_no_token(model, ids, config, checkpoint):
    file = Tokenizer(model)
    file.pre_tokenizer = pre_tokenizers.Whitespace()
    file.add_special_tokens(["<s>", "</s>", "<pad>"])
    file.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)])
    put(file, checkpoint, bos_token="<s>", **config)
    given = load_tokenizer(str(checkpoint)).taken("the fox")["input_ids"]
    expected = [0, *ids, 1]
    if not config.get("add_bos_token", True):
        expected = expected[1:]
    if not config.get("add_eos_token", True):
        expected = expected[:-1]
    assert given == expected


@pytest.mark.parametrize("value", ["false", "true", 0])
def test_what_is_neither_true_nor_false_is_no_switch(value, checkpoint):
    put(word_piece(), checkpoint, add_eos_token=value)
    with pytest.raises(SourceError, match=r"add_eos_token .* of tokenizer_config.json is neither true nor false"):
        load_tokenizer(str(checkpoint))


def test_ids_of_added_tokens_json_hold_or_are_refused(checkpoint):
    file = word_piece()
    put(file, checkpoint)
    given = checkpoint / "added_tokens.json"
    given.write_text(json.dumps({"<verdict>": file.get_vocab_size(), "</s>": file.token_to_id("</s>")}))
    loaded = load_tokenizer(str(checkpoint))
    assert loaded.taken("<verdict>")["input_ids"] == [file.get_vocab_size()]
    assert any("adds tokens to tokenizer.json" in note for note in loaded.notes)
    given.write_text(json.dumps({"</s>": 7}))
    assert any("added_tokens.json gives '</s>' the id 7" in note for note in load_tokenizer(str(checkpoint)).notes)
    given.write_text(json.dumps({"<verdict>": file.get_vocab_size() + 3}))
    with pytest.raises(SourceError, match=r"added_tokens.json gives '<verdict>' the id .*correct one of them"):
        load_tokenizer(str(checkpoint))


def test_a_tokenizer_that_autotokenizer_cannot_load_is_that_of_its_file(checkpoint):
    own = {"tokenizer_class": "OwnTokenizer", "auto_map": {"AutoTokenizer": ["own.OwnTokenizer", None]}}
    file = word_piece()
    put(file, checkpoint, **own)
    (checkpoint / "config.json").unlink()  # by which it would take another class
    loaded = load_tokenizer(str(checkpoint))
    assert [loaded.taken(text)["input_ids"] for text in TEXTS] == [file.encode(text).ids for text in TEXTS]
    assert loaded.taken.pad_token == "<pad>"
    (note,) = loaded.notes
    assert note.startswith("AutoTokenizer cannot load the tokenizer (")
    assert note.endswith("; the tokens are those of tokenizer.json")


def test_a_special_token_that_two_files_name_differently_is_told_with_the_one_that_is_taken(checkpoint):
    put(word_piece(), checkpoint)
    (checkpoint / "special_tokens_map.json").write_text(json.dumps({"eos_token": "<pad>", "pad_token": "<pad>"}))
    loaded = load_tokenizer(str(checkpoint))
    (note,) = loaded.notes
    assert note.startswith("eos_token is '</s>' in tokenizer_config.json and '<pad>' in special_tokens_map.json; ")
    assert f"; {loaded.taken.eos_token!r} is taken" in note


@pytest.mark.parametrize(
    ("content", "message"), [("{", "special_tokens_map.json is not JSON"), ("[]", "not a JSON obj")]
)
def test_an_adapters_file_that_cannot_be_laid_over_the_bases_is_refused_by_name(tmp_path, content, message):
    (tmp_path / "base").mkdir()
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "special_tokens_map.json").write_text(content)
    with (
        pytest.raises(SourceError, match=rf"adapter: its tokenizer cannot be merged into .*{message}"),
        adapters_tokenizer(tmp_path / "adapter", tmp_path / "base"),
    ):
        pass
