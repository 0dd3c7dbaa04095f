"""Files of texts and pairs: what of a line or a row is read, and what is refused by its number."""

import json
import sys

import pyarrow
import pytest
from pyarrow import parquet

from plaudit_export.checks.text_files import Pair, read_items, read_pairs
from plaudit_export.errors import SourceError

ANSWERS = ("chosen", "rejected")
USER = [{"role": "user", "content": "p"}]
SAYS_C, SAYS_D = ([{"role": "assistant", "content": text}] for text in "cd")


def write(tmp_path, *rows, form="jsonl"):
    path = tmp_path / f"texts.{form}"
    if form == "parquet":
        parquet.write_table(pyarrow.Table.from_pylist(list(rows)), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


# TRL's preference forms, and what each makes of a prompt and two answers.
PAIRS = [
    ({"chosen": "c", "rejected": "d"}, {"text": "c"}, {"text": "d"}),
    ({"prompt": "p", "chosen": " c", "rejected": ""}, *({"prompt": "p", "completion": x} for x in (" c", ""))),
    ({"chosen": USER + SAYS_C, "rejected": USER + SAYS_D}, *({"messages": USER + x} for x in (SAYS_C, SAYS_D))),
    ({"prompt": USER, "chosen": SAYS_C, "rejected": SAYS_D}, *({"messages": USER + x} for x in (SAYS_C, SAYS_D))),
    ({"prompt": USER, "chosen": "c", "rejected": "d"}, *({"messages": USER + x} for x in (SAYS_C, SAYS_D))),
    # As UltraFeedback has them.
    (
        {"prompt": "p", "chosen": USER + SAYS_C, "rejected": USER + SAYS_D, "messages": USER + SAYS_C, "margin": 0.5},
        *({"messages": USER + x} for x in (SAYS_C, SAYS_D)),
    ),
]


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
@pytest.mark.parametrize(("row", "chosen", "rejected"), PAIRS)
def test_a_pair_of_trls_forms_is_two_items_and_its_other_columns_are_left_out(tmp_path, row, chosen, rejected, form):
    path = write(tmp_path, {**row, "source": "web", "tools": None}, form=form)
    assert read_pairs("--pairs", path) == [Pair(chosen, rejected)]
    assert read_items("--golden", path) == [chosen, rejected]


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_a_prompt_of_messages_with_its_completion_is_a_chat(tmp_path, form):
    path = write(tmp_path, {"prompt": USER, "completion": SAYS_D, "label": True, "finished": False}, form=form)
    assert read_items("--golden", path) == [{"messages": USER + SAYS_D, "finished": False}]


def test_a_table_gives_its_columns_of_text_and_no_others(tmp_path):
    rows = [{"text": "a", "label": 1.5}, {"text": "b", "label": float("nan")}]
    assert read_items("--calibrate", write(tmp_path, *rows, form="parquet")) == [{"text": "a"}, {"text": "b"}]
    rows = [{"prompt": "a", "completions": ["b", "c"], "tools": [], "n": b"x"}]
    assert read_items("--calibrate", write(tmp_path, *rows, form="parquet")) == [
        {"prompt": "a", "completion": "b"},
        {"prompt": "a", "completion": "c"},
    ]


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"chosen": "c"}, "chosen and rejected are not both texts or both chats; give two strings"),
        ({"chosen": "c", "rejected": SAYS_D}, "chosen and rejected are not both texts or both chats"),
        (
            {"prompt": USER, "chosen": USER + SAYS_C, "rejected": SAYS_D},
            "chosen begins with the prompt, so the prompt would",
        ),
        (
            {"prompt": "q", "chosen": SAYS_C, "rejected": SAYS_D},
            "chosen is a chat that does not contain the prompt, and",
        ),
        (
            {"chosen": SAYS_C, "rejected": [{"content": "d"}]},
            r"rejected: messages\[0\]\.role: Field required",
        ),
        (
            {"prompt": "Boil me an egg, please.", **{each: f"Boil me an egg, please. {each}" for each in ANSWERS}},
            "chosen and rejected begin with the prompt, so the prompt would be scored twice",
        ),
        ({"question": "q?", "chosen": "c", "rejected": "d"}, "has question, but chosen does not contain it, so"),
        ({"prompt": 3, "chosen": "c", "rejected": "d"}, "chosen's prompt: messages: Input should be a valid list"),
        ({"chosen": "c", "rejected": "d", "tools": ["t"]}, "has tools, which POST /score does not support"),
        ({"messages": USER, "images": ["i"]}, "has images, which POST /score does not support"),
        ({"note": "nothing to score"}, "an item is an object with one of text, prompt, messages, token_ids"),
    ],
)
def test_a_row_that_cannot_be_scored_as_it_is_meant_is_named_by_its_number(tmp_path, row, message, form):
    path = write(tmp_path, row, form=form)
    with pytest.raises(SourceError, match=f"--golden .*texts.{form} (line|row) 1: {message}"):
        read_items("--golden", path)


def test_a_prompt_of_another_name_that_the_texts_begin_with_is_about_them(tmp_path):
    row = {"question": "q?", "chosen": "q? c", "rejected": "q? d"}
    assert read_pairs("--pairs", write(tmp_path, row)) == [Pair({"text": "q? c"}, {"text": "q? d"})]


def test_a_file_of_pairs_holds_nothing_else(tmp_path):
    path = write(tmp_path, PAIRS[0][0], {"text": "a"})
    with pytest.raises(SourceError, match=r"--pairs .* line 2: is not a preference pair; give rows with chosen"):
        read_pairs("--pairs", path)


@pytest.mark.parametrize(("read", "what"), [(read_items, "items"), (read_pairs, "pairs")])
def test_an_empty_file_is_refused(tmp_path, read, what):
    with pytest.raises(SourceError, match=rf"--option .*texts\.jsonl: holds no {what}; give "):
        read("--option", write(tmp_path))


def test_parquet_without_pyarrow_is_one_line_that_says_what_to_install(tmp_path, monkeypatch):
    path = write(tmp_path, {"text": "a"}, form="parquet")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(SourceError, match=r"texts\.parquet: parquet needs pyarrow: pip install pyarrow; or give JSONL"):
        read_items("--golden", path)


def test_a_file_that_only_says_that_it_is_parquet_is_refused_in_one_line(tmp_path):
    path = tmp_path / "texts.parquet"
    path.write_text('{"text": "a"}')
    with pytest.raises(SourceError, match=r"texts\.parquet: cannot be read \(.*[Pp]arquet") as raised:
        read_items("--golden", path)
    assert "\n" not in str(raised.value)


def test_a_chat_is_read_as_the_service_hands_it_to_the_template(tmp_path):
    message = {"content": [{"type": "text", "text": "a"}], "role": "user", "name": None, "reasoning_content": "b"}
    path = tmp_path / "texts.jsonl"
    path.write_text(json.dumps({"messages": [message], "completions": ["c"]}))
    (item,) = read_items("--golden", path)
    assert list(item["messages"][0].items()) == [("content", "a"), ("role", "user"), ("reasoning_content", "b")]
    assert item["messages"][1] == {"role": "assistant", "content": "c"}


def test_items_are_read_one_per_line(tmp_path):
    items = [{"text": "grün"}, {"prompt": "a", "completion": "b", "finished": False}]
    path = tmp_path / "texts.jsonl"
    path.write_text("\n\n".join(json.dumps(item) for item in items) + "\n")
    assert read_items("--golden", path) == items


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2"),
        ('{"txt": "a"}', "line 2"),
        ('["text"]', "line 2"),
    ],
)
def test_a_line_that_is_no_item_is_named(tmp_path, line, message):
    path = tmp_path / "texts.jsonl"
    path.write_text('{"text": "fine"}\n' + line)
    with pytest.raises(SourceError, match=message):
        read_items("--golden", path)


def test_a_golden_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(SourceError, match=r"nothing\.jsonl: cannot be read"):
        read_items("--golden", tmp_path / "nothing.jsonl")
