"""Tokenization equals transformers' for the same input; the exceptions are those that docs/scoring.md names."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from plaudit_service.bundles.bundle import TOKENIZER, Scoring, SpecialToken, load_bundle, sha256_of
from plaudit_service.errors import InvalidRequest
from plaudit_service.items import ChatItem, Message, PromptItem, TextItem, TokenItem
from plaudit_service.results import Status
from plaudit_service.testing import write_tiny_bundle
from plaudit_service.text.tokenization import Asked, Tokenization, TokenizedText, pooled_index

VOCABULARY = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "a", "b", "c", "d"]
MAX_TOKENS = 8
texts = st.lists(st.sampled_from(["a", "b", "c", "d", "zzz", "[SEP]", "[CLS]"]), max_size=12).map(" ".join)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny_bundle(tmp_path_factory.mktemp("tokenization") / "bundle")


def bert_like() -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel({word: at for at, word in enumerate(VOCABULARY)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(VOCABULARY[:4])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    return tokenizer


@pytest.fixture(scope="module")
def make(folder, tmp_path_factory):
    """Tokenizations of a BERT-like tokenizer with other rules."""
    path = tmp_path_factory.mktemp("bert-like")
    bert_like().save(str(path / TOKENIZER))
    bundle = load_bundle(folder)

    def tokenization(**rules) -> Tokenization:
        fields = {"max_tokens": MAX_TOKENS, "vocab_size": len(VOCABULARY), "bos": None, "eos": None} | rules
        scoring = Scoring.model_validate(bundle.scoring.model_dump() | fields)
        return Tokenization(
            replace(bundle, path=path, manifest=bundle.manifest.model_copy(update={"scoring": scoring}))
        )

    return tokenization


@pytest.fixture(scope="module")
def reference():
    return PreTrainedTokenizerFast(tokenizer_object=bert_like(), pad_token="[PAD]", unk_token="[UNK]")


def ids_of(result) -> list[int]:
    assert isinstance(result, TokenizedText), result
    return result.token_ids.tolist()


@given(texts.filter(lambda text: set(text.split()) - {"[SEP]", "[CLS]"}))
def test_ids_and_truncation_on_the_right_are_those_of_transformers(make, reference, text):
    (result,) = make().tokenize([TextItem(text=text)], Asked("right"))
    assert ids_of(result) == reference(text, truncation=True, max_length=MAX_TOKENS)["input_ids"]
    assert result.truncated == (len(reference(text)["input_ids"]) > MAX_TOKENS)


@given(texts, texts.filter(lambda text: set(text.split()) - {"[SEP]", "[CLS]"}))
def test_a_pair_has_the_ids_and_types_of_transformers(make, reference, prompt, completion):
    (result,) = make(pair=True, max_tokens=64).tokenize([PromptItem(prompt=prompt, completion=completion)])
    expected = reference(prompt, completion, return_token_type_ids=True)
    assert ids_of(result) == expected["input_ids"]
    assert result.type_ids.tolist() == expected["token_type_ids"]


def test_truncation_on_the_left_keeps_the_leading_special_token_and_the_end(make):
    (result,) = make(max_tokens=5).tokenize([TextItem(text="a b c d a b")], Asked("left"))
    assert ids_of(result) == [1, 7, 4, 5, 2]


def test_an_appended_eos_survives_truncation_on_the_right(make):
    rules = {"max_tokens": 5, "append_eos": True, "eos": SpecialToken(text="[PAD]", id=0)}
    (result,) = make(**rules).tokenize([TextItem(text="a b c d a b")], Asked("right"))
    assert ids_of(result) == [1, 4, 5, 2, 0]


def test_an_appended_eos_survives_truncation_also_where_a_second_bos_was_dropped(make):
    rules = {"max_tokens": 4, "append_eos": True, "eos": SpecialToken(text="[PAD]", id=0)}
    tokenization = make(bos=SpecialToken(text="[CLS]", id=1), **rules)
    (result,) = tokenization.tokenize([TextItem(text="[CLS] a b c d")], Asked("right"))
    assert ids_of(result) == [1, 4, 2, 0]


EOS = {"eos": SpecialToken(text="[SEP]", id=2), "append_eos": True, "add_special_tokens": False}


@pytest.mark.parametrize("text", ["a b c d a b c d a", "a b c d a b c d a [SEP]"])
def test_truncation_on_the_right_keeps_eos_whether_the_text_brought_it_or_not(make, text):
    (result,) = make(**EOS, max_tokens=4).tokenize([TextItem(text=text)], Asked("right"))
    assert ids_of(result) == [4, 5, 6, 2]


@pytest.mark.parametrize(
    ("text", "ids"),
    [("a b\n\n", [4, 5, 2]), ("a b [SEP]", [4, 5, 2]), ("a b [SEP]\n", [4, 5, 2]), ("a\nb", [4, 5, 2])],
)
def test_a_finished_text_ends_as_the_rules_say(make, text, ids):
    tokenization = make(**EOS, strip_newlines=True, space_before_eos=True)
    (result,) = tokenization.tokenize([TextItem(text=text)])
    assert ids_of(result) == ids
    (group,) = tokenization.tokenize([PromptItem(prompt=text[:2], completion=text[2:])])
    assert ids_of(group) == ids


def test_a_space_before_eos_is_a_token_where_the_tokenizer_makes_one_of_it(tmp_path, folder):
    tokenizer = Tokenizer(models.WordLevel({"a": 0, " ": 1, "[SEP]": 2}, unk_token="a"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "isolated")
    tokenizer.add_special_tokens(["[SEP]"])
    tokenizer.save(str(tmp_path / TOKENIZER))
    bundle = load_bundle(folder)
    rules = EOS | {"vocab_size": 3, "bos": None, "pad_token_id": None, "strip_newlines": True, "space_before_eos": True}
    scoring = Scoring.model_validate(bundle.scoring.model_dump() | rules)
    tokenization = Tokenization(
        replace(bundle, path=tmp_path, manifest=bundle.manifest.model_copy(update={"scoring": scoring}))
    )
    given = [TextItem(text="a"), TextItem(text="a[SEP]"), TextItem(text="a\n"), TextItem(text="a", finished=False)]
    assert [ids_of(each) for each in tokenization.tokenize(given)] == [[0, 1, 2], [0, 2], [0, 1, 2], [0]]


def test_a_text_that_was_cut_keeps_its_newlines_and_gets_no_eos(folder, tmp_path):
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "\n": 1, "[SEP]": 2}, unk_token="a"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("\n", "isolated")
    tokenizer.save(str(tmp_path / TOKENIZER))
    bundle = load_bundle(folder)
    rules = EOS | {"vocab_size": 3, "bos": None, "pad_token_id": None, "strip_newlines": True}
    scoring = Scoring.model_validate(bundle.scoring.model_dump() | rules)
    tokenization = Tokenization(
        replace(bundle, path=tmp_path, manifest=bundle.manifest.model_copy(update={"scoring": scoring}))
    )
    given = [TextItem(text="a\n\n", finished=False), TextItem(text="a\n\n")]
    assert [ids_of(each) for each in tokenization.tokenize(given)] == [[0, 1, 1], [0, 2]]


@pytest.mark.parametrize(
    ("chat_end", "finished", "cut"),
    [("as_text", [0, 2, 1, 2], [0, 2, 1]), ("template", [0, 2, 1], [0, 2, 1]), ("eos", [0, 2], [0, 2, 1])],
)
def test_a_chat_ends_as_chat_end_says(folder, tmp_path, chat_end, finished, cut):
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "\n": 1, "[SEP]": 2}, unk_token="a"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("\n", "isolated")
    tokenizer.add_special_tokens(["[SEP]"])
    tokenizer.save(str(tmp_path / TOKENIZER))
    bundle = load_bundle(folder)
    rules = EOS | {"vocab_size": 3, "bos": None, "pad_token_id": None, "chat_end": chat_end}
    scoring = Scoring.model_validate(bundle.scoring.model_dump() | rules)
    template = "{{ messages[0].content }}[SEP]\n\n"  # Jinja keeps all newlines but the last
    tokenization = Tokenization(
        replace(
            bundle,
            path=tmp_path,
            chat_template=template,
            manifest=bundle.manifest.model_copy(update={"scoring": scoring}),
        )
    )
    chat = [Message(role="user", content="a")]
    given = [ChatItem(messages=chat), ChatItem(messages=chat, finished=False), TextItem(text="a")]
    assert [ids_of(each) for each in tokenization.tokenize(given)] == [finished, cut, [0, 2]]


@pytest.mark.parametrize("text", ["\n\n", ""])
def test_a_text_of_nothing_but_newlines_is_empty_where_they_are_stripped(make, text):
    (result,) = make(**EOS, strip_newlines=True, space_before_eos=True).tokenize([TextItem(text=text)])
    assert result.status is Status.EMPTY


def test_every_text_gets_the_class_token_behind_eos_and_ids_are_scored_as_they_are(make):
    tokenization = make(**EOS, class_token=SpecialToken(text="[CLS]", id=1), max_tokens=4)
    given = [TextItem(text="a"), TextItem(text="a", finished=False), TokenItem(token_ids=[4, 5])]
    assert [ids_of(each) for each in tokenization.tokenize(given)] == [[4, 2, 1], [4, 1], [4, 5]]
    (cut,) = tokenization.tokenize([TextItem(text="a b c d a b")], Asked("right"))
    assert ids_of(cut) == [4, 5, 2, 1]


@pytest.mark.parametrize(("ids", "index"), [([4, 0, 5, 0], 0), ([4, 5], 1), ([0, 4, 5], 2), ([0], 0), ([4, 5, 0], 1)])
def test_the_token_before_the_first_one_of_an_id_is_scored(make, ids, index):
    assert pooled_index(np.array(ids), None, 0) == index
    (result,) = make(kind="causal", pad_token_id=None, pooled_before=0).tokenize([TokenItem(token_ids=ids)])
    assert ids_of(result) == ids[: index + 1]


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"space_before_eos": True}, "space_before_eos is true, but scoring.append_eos is false"),
        ({"chat_end": "template"}, "chat_end is set, but no EOS is appended"),
        (EOS | {"pair": True, "chat_end": "eos"}, "chat_end is set"),
        ({"pooled_before": 0}, "scoring.pad_token_id contradict each other"),
        ({"pair": True, "strip_newlines": True}, "rules for the end of a single text"),
    ],
)
def test_rules_that_contradict_each_other_are_refused(make, rules, message):
    with pytest.raises(ValueError, match=message):
        make(**rules)


def test_token_ids_of_a_pair_model_are_refused_because_they_do_not_say_what_is_the_completion(make):
    with pytest.raises(InvalidRequest, match="trained on pairs"):
        make(pair=True).tokenize([TokenItem(token_ids=[1, 4, 2])])


def test_a_text_with_an_id_that_the_model_lacks_fails_alone(make):
    results = make(vocab_size=7).tokenize([TextItem(text="a d"), TextItem(text="a b")])
    assert (results[0].status, results[0].detail) == (
        "failed",
        'items[0]: token id 7, but the vocabulary of model "tiny" has 7 entries; its tokenizer has more '
        "tokens than the model",
    )
    assert ids_of(results[1]) == [1, 4, 5, 2]


def test_a_text_on_which_the_tokenizer_panics_fails_alone(tiny_bundle):
    path = tiny_bundle()
    content = json.loads((path / "tokenizer.json").read_text())
    content["post_processor"]["special_tokens"] = {}  # so its template names a token that is not there
    (path / "tokenizer.json").write_text(json.dumps(content))
    manifest = json.loads((path / "bundle.json").read_text())
    manifest["scoring"]["sha256"]["tokenizer.json"] = sha256_of(path / "tokenizer.json")
    (path / "bundle.json").write_text(json.dumps(manifest))
    tokenization = Tokenization(load_bundle(path))
    failed, ids = tokenization.tokenize([TextItem(text="good"), TokenItem(token_ids=[4])])
    assert (failed.status, failed.detail) == (Status.FAILED, "items[0]: the tokenizer failed: TokenizerPanic")
    assert ids.token_ids.tolist() == [4]


def test_an_unknown_token_that_is_also_bos_counts_as_special(make):
    unknown = SpecialToken(text="[UNK]", id=3)
    assert [result.status for result in make(bos=unknown).tokenize([TextItem(text="zzz")])] == ["empty"]
    assert ids_of(make().tokenize([TextItem(text="zzz")])[0]) == [1, 3, 2]


@pytest.mark.parametrize(
    ("ids", "pad", "expected"),
    [([5, 6, 0, 0], 0, 1), ([0, 5, 0], 0, 1), ([0, 0], 0, 0), ([5, 6], None, 1), ([5], 5, 0)],
)
def test_the_pooled_token_is_the_rightmost_that_is_no_pad(ids, pad, expected):
    import numpy as np

    assert pooled_index(np.array(ids), pad) == expected


TOKENS = Asked("left", "tokens")


def columns(result, *names):
    return [getattr(result.places, name).tolist() for name in names]


def test_values_are_asked_for_at_the_tokens_that_truncation_leaves_by_their_places_in_the_whole_text(make):
    (result,) = make(max_tokens=5).tokenize([TextItem(text="a b c d a b")], TOKENS)
    assert ids_of(result) == [1, 7, 4, 5, 2]
    assert columns(result, "rows", "tokens", "ends") == [[0, 1, 2, 3, 4], [0, 4, 5, 6, 7], [0, 7, 9, 11, 11]]


def test_a_dropped_bos_and_an_appended_eos_move_no_token_from_its_place_in_the_text(make):
    rules = {"max_tokens": 4, "append_eos": True, "eos": SpecialToken(text="[PAD]", id=0)}
    tokenization = make(bos=SpecialToken(text="[CLS]", id=1), **rules)
    (result,) = tokenization.tokenize([TextItem(text="[CLS] a b c d")], Asked("right", "tokens"))
    assert ids_of(result) == [1, 4, 2, 0]
    assert columns(result, "tokens", "ends") == [[0, 1, 5, 6], [5, 7, 13, 13]]


def test_values_are_asked_for_up_to_the_pooled_token_and_of_ids_there_is_no_text(make):
    tokenization = make(kind="causal", pad_token_id=0)
    text, ids = tokenization.tokenize([TextItem(text="a b [PAD]"), TokenItem(token_ids=[4, 5, 0])], TOKENS)
    assert columns(text, "tokens", "ends") == [[0, 1, 2, 3, 4], [0, 1, 3, 9, 9]]  # up to [SEP]
    assert columns(ids, "rows", "tokens") == [[0, 1], [0, 1]]
    assert ids.places.ends is None


def test_a_step_is_asked_for_at_the_token_that_ends_it_unless_that_is_cut_off(make):
    item = PromptItem(prompt="a ", steps=["b ", "c d", " "])
    (whole,) = make().tokenize([item], Asked("left", "steps"))
    assert columns(whole, "tokens", "ends", "steps") == [[2, 4, 4], [3, 7, 7], [0, 1, 2]]
    (cut,) = make(max_tokens=3).tokenize([item], Asked("left", "steps"))
    assert columns(cut, "rows", "tokens", "steps") == [[1, 1], [4, 4], [1, 2]]


def test_a_chat_tells_which_message_a_token_ends_in_and_where_its_steps_end(tiny_bundle):
    chat = ChatItem(messages=[Message(role="user", content="good")], steps=["bad ", "awful"])
    tokenization = Tokenization(load_bundle(tiny_bundle()))
    (tokens,) = tokenization.tokenize([chat], TOKENS)
    assert columns(tokens, "messages") == [[-1, 0, -1, 1, 1]]  # user, good, assistant, bad, awful
    (steps,) = tokenization.tokenize([chat], Asked(along="steps", explain=True))
    assert columns(steps, "tokens", "messages", "steps") == [[3, 4], [1, 1], [0, 1]]
    assert [steps.text[:end] for end in steps.places.ends] == ["user good assistant bad", steps.text.rstrip()]


def test_a_chat_whose_template_rewrites_the_steps_fails_and_says_so(tiny_bundle):
    template = "{% for m in messages %}{{ m['content'] | upper }}{% endfor %}"
    tokenization = Tokenization(load_bundle(tiny_bundle(chat_template=template)))
    chat = ChatItem(messages=[Message(role="user", content="good")], steps=["bad"])
    (result,) = tokenization.tokenize([chat], Asked(along="steps"))
    assert (result.status, result.num_tokens) == (Status.FAILED, 0)
    assert result.detail == "items[0]: the chat template changes the steps; send a prompt in place of a chat"


@pytest.mark.parametrize("item", [TextItem(text="a"), TokenItem(token_ids=[4]), PromptItem(prompt="a", completion="b")])
def test_steps_that_nobody_gave_are_refused(make, item):
    with pytest.raises(InvalidRequest, match=r"items\[0\]: along is .* says what a step is; give steps"):
        make().tokenize([item], Asked(along="steps"))


def test_tokenization_goes_in_steps_that_end_behind_a_bounded_text_and_change_nothing(make):
    tokenization = make(max_tokens=10**6)
    # A step ends behind 65,536 characters, where each text counts 64 more: 1,009 texts of one character.
    items = [
        PromptItem(prompt="a b ", completions=["c d " * 10_000] * 5),
        TextItem(text="a"),
        TextItem(text="b " * 100_000),
        TokenItem(token_ids=[4] * 70_000),
        *[TextItem(text="d")] * 3000,
    ]
    steps = list(tokenization.steps(items))
    sizes = [sum(len(text.token_ids) for text in step) for step in steps]
    assert [len(step) for step in steps] == [2, 2, 3, 1, 1009, 1009, 982]
    assert max(sizes) <= 100_000 + 65_536
    whole = tokenization.tokenize(items)
    assert [ids_of(text) for step in steps for text in step] == [ids_of(text) for text in whole]
