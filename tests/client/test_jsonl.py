import json
from collections import Counter
from dataclasses import asdict

import pytest

from plaudit_client.errors import InvalidArgument
from plaudit_client.jsonl import Summary, form_chunks, parse_lines, parse_scores, render
from plaudit_client.scores import Along, Score

USER = [{"role": "user", "content": "p"}]
SAYS_C = [{"role": "assistant", "content": "c"}]
SAYS_D = [{"role": "assistant", "content": "d", "name": None}]


def line(**value):
    return json.dumps(value).encode()


def parse(*values):
    return list(parse_lines([json.dumps(value).encode() + b"\n" for value in values], "in.jsonl"))


def test_a_line_is_a_text_an_item_or_a_pair():
    text, item, group, pair = parse(
        "a", {"text": "b", "id": 7}, {"prompt": "p", "completions": ["c", "d"]}, {"chosen": "e", "rejected": "f"}
    )
    assert (text.items, text.copied) == ([{"text": "a"}], {"line": 1})
    assert (item.items, item.copied) == ([{"text": "b"}], {"line": 2, "id": 7})
    assert (group.num_sequences, group.is_pair) == (2, False)
    assert (pair.items, pair.is_pair) == ([{"text": "e"}, {"text": "f"}], True)


D = [{"role": "assistant", "content": "d"}]


@pytest.mark.parametrize(
    ("value", "chosen", "rejected"),
    [
        ({"prompt": "p", "chosen": " c", "rejected": " d"}, *({"prompt": "p", "completion": f" {x}"} for x in "cd")),
        ({"prompt": None, "chosen": "c", "rejected": "d"}, {"text": "c"}, {"text": "d"}),
        ({"prompt": USER, "chosen": SAYS_C, "rejected": SAYS_D}, *({"messages": USER + x} for x in (SAYS_C, D))),
        ({"chosen": USER + SAYS_C, "rejected": USER + SAYS_D}, *({"messages": USER + x} for x in (SAYS_C, D))),
        (
            {"prompt": "p", "chosen": USER + SAYS_C, "rejected": USER + SAYS_D},  # as UltraFeedback has them
            *({"messages": USER + x} for x in (SAYS_C, D)),
        ),
        (
            {"prompt": USER, "chosen": "c", "rejected": "d"},
            *({"messages": USER, "completions": [x]} for x in "cd"),
        ),
    ],
)
def test_a_pair_is_taken_in_each_of_trls_preference_formats(value, chosen, rejected):
    (pair,) = parse({**value, "id": 5})
    assert (pair.items, pair.is_pair, pair.num_sequences) == ([chosen, rejected], True, 2)
    assert pair.copied == {"line": 1, "id": 5}


QUESTION = "How do I boil an egg? "


@pytest.mark.parametrize(
    ("prompt", "chosen", "rejected"),
    [
        (QUESTION, f"{QUESTION}Seven minutes.", "No idea."),
        (QUESTION, "No idea.", f"{QUESTION}Seven minutes."),
        ("A", "A dog.", "A cat."),
        ("Good morning", "Good morning! How are you?", "Good morning to you."),
        ("", "c", "d"),
    ],
)
def test_a_text_alone_may_repeat_its_prompt_and_two_may_begin_with_a_short_one(prompt, chosen, rejected):
    (pair,) = parse({"prompt": prompt, "chosen": chosen, "rejected": rejected})
    assert pair.items == [{"prompt": prompt, "completion": text} for text in (chosen, rejected)]


def test_a_pair_of_texts_that_both_begin_with_the_prompt_is_refused_with_the_remedy():
    with pytest.raises(InvalidArgument) as caught:
        parse({"prompt": QUESTION, "chosen": f"{QUESTION}Seven minutes.", "rejected": f"{QUESTION}No idea."})
    assert str(caught.value) == (
        "in.jsonl:1.chosen: begins with the prompt, and so does rejected, so the prompt would be scored "
        "twice; leave prompt "
        "out, or remove it from chosen and rejected"
    )


def test_a_conversational_prompt_with_its_completion_is_a_chat():
    (item,) = parse({"prompt": USER, "completion": SAYS_D, "finished": False})
    assert (item.items, item.is_pair) == ([{"messages": USER + D, "finished": False}], False)


def test_what_a_data_set_says_about_a_pair_or_a_chat_is_left_out():
    pair, chat = parse(
        {"chosen": "a", "rejected": "b", "margin": 1.5, "messages": USER, "images": None},
        {"prompt": USER, "completion": SAYS_D, "label": True, "chat_template_kwargs": {}},
    )
    assert pair.items == [{"text": "a"}, {"text": "b"}]
    assert chat.items == [{"messages": USER + D}]


def test_blank_lines_are_left_out_but_counted():
    lines = [b"\n", b'"a"\n', b"  \r\n", b'"b"']
    assert [line.copied["line"] for line in parse_lines(lines, "in.jsonl")] == [2, 4]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"{", "in.jsonl:2: not JSON: "),
        (b"NaN", "in.jsonl:2: not JSON: NaN"),
        (b'"\xff"', "in.jsonl:2: not JSON: "),
        (b"[" * 100_000, "in.jsonl:2: not JSON: "),
        (b"3", "in.jsonl:2: got int; give a str"),
        (b"null", "in.jsonl:2: got NoneType"),
        (b'{"text": "a", "label": 1}', "in.jsonl:2: has unknown keys label; remove them: only"),
        (b'{"text": "a", "prompt": "b"}', "in.jsonl:2: has the keys prompt, text; give one of"),
        (b'{"text": 3}', r"in.jsonl:2\.text: got int"),
        (b'{"chosen": "a"}', "in.jsonl:2: has the keys chosen; a preference pair needs"),
        (
            b'{"chosen": "a", "rejected": "b", "tools": [{}]}',
            "in.jsonl:2: has tools, which the service does not support",
        ),
        (b'{"chosen": [], "rejected": "b"}', "in.jsonl:2: chosen and rejected are not both texts or both chats"),
        (b'{"chosen": null, "rejected": null}', "in.jsonl:2: chosen and rejected are not both texts or both chats"),
        (b'{"chosen": [], "rejected": []}', r"in.jsonl:2\.chosen: got an empty list; give a list of at least one"),
        (b'{"prompt": 3, "chosen": "a", "rejected": "b"}', r"in.jsonl:2\.prompt: got int; give a list of at least one"),
        (line(prompt=USER, chosen=[{"content": "a"}], rejected=SAYS_D), r"in.jsonl:2\.chosen\[0\]\.role: missing"),
        (line(prompt=USER, chosen=SAYS_C, rejected=[*USER, *SAYS_D]), r"in.jsonl:2\.rejected: begins with the prompt"),
        (
            line(prompt="p", chosen=SAYS_C, rejected=SAYS_D),
            r"in.jsonl:2\.chosen: is a chat that does not contain the prompt, and the prompt is a",
        ),
        (line(prompt=USER, completion=[3]), r"in.jsonl:2\.completion: got a list of int"),
    ],
)
def test_a_wrong_line_is_named_by_file_and_number(text, message):
    with pytest.raises(InvalidArgument, match=message):
        list(parse_lines([b'"fine"', text], "in.jsonl"))


def test_chunks_hold_at_most_so_many_sequences_and_never_split_a_line():
    pair = {"chosen": "a", "rejected": "b"}
    lines = parse("a", pair, "b", {"prompt": "p", "completions": ["c"] * 5}, "d")
    chunks = form_chunks(lines, 3)
    assert [[line.copied["line"] for line in chunk] for chunk in chunks] == [[1, 2], [3], [4], [5]]


def test_a_chunk_ends_early_when_its_lines_are_long():
    lines = parse(*["x" * 1_500_000] * 5)
    assert [len(chunk) for chunk in form_chunks(lines, 100)] == [2, 2, 1]


def test_chunks_are_formed_as_lines_come():
    def lines():
        yield from parse("a", "b")
        raise AssertionError("read ahead")

    assert len(next(form_chunks(lines(), 1))) == 1


def test_output_lines_hold_line_id_and_result():
    ok, too_long = Score("ok", 1.5, 3, heads={"a": 1.5}), Score("too_long", None, 9, detail="too many")
    wire_ok = {"status": "ok", "score": 1.5, "num_tokens": 3, "truncated": False, "heads": {"a": 1.5}}
    wire_too_long = {"status": "too_long", "score": None, "num_tokens": 9, "truncated": False, "detail": "too many"}
    item, group, pair = parse(
        {"text": "a", "id": "x"}, {"prompt": "p", "completions": ["c", "d"]}, {"chosen": "e", "rejected": "f"}
    )
    assert json.loads(render(item, [ok])) == {"line": 1, "id": "x"} | wire_ok
    assert json.loads(render(group, [ok, too_long])) == {"line": 2, "results": [wire_ok, wire_too_long]}
    assert json.loads(render(pair, [too_long, ok])) == {"line": 3, "chosen": wire_too_long, "rejected": wire_ok}


@pytest.mark.parametrize(
    "along",
    [Along((0, 7), (0.5, 1.0), False, (1, 9), (None, 0), (0, 2)), Along((0,), (0.5,), trained=True)],
)
def test_values_along_a_text_are_written_and_read_again(along):
    (item,) = parse({"text": "a"})
    score = Score("ok", 1.0, 8, along=along, text="a ")
    written = json.loads(render(item, [score]))
    assert written["along"].keys() == {name for name, column in asdict(along).items() if column is not None}
    assert parse_scores(written) == [score]


def test_the_summary_of_pairs_counts_each_pair_once():
    def score(value):
        return Score(value, None) if isinstance(value, str) else Score("ok", value)

    summary = Summary()
    values = [(2.0, 1.0), (1.0, 2.0), (1.0, 1.0), (3.0, 1.0), ("too_long", 1.0), (1.0, "too_long"), ("empty", "failed")]
    (line,) = parse({"chosen": "a", "rejected": "b"})
    for pair in values:
        summary.add(line, [score(value) for value in pair])
    # 4 pairs are scored, 2 of them right: the tie is not.
    assert summary.describe_pairs() == "pairs: 7, scored: 4, left out: too_long 2, empty 1, pair accuracy: 0.5000"
    assert (summary.sequences, summary.failures) == (14, Counter(too_long=2, empty=1, failed=1))


def test_without_a_scored_pair_there_is_no_accuracy():
    summary = Summary()
    (line,) = parse({"chosen": "a", "rejected": "b"})
    summary.add(line, [Score("failed", None), Score("ok", 1.0)])
    assert summary.describe_pairs() == "pairs: 1, scored: 0, left out: failed 1, pair accuracy: none"


@pytest.mark.parametrize("name", ["question", "instruction", "query"])
def test_a_pair_whose_prompt_has_another_name_is_refused_unless_the_texts_hold_it(name):
    with pytest.raises(InvalidArgument, match=f"has {name}, but chosen does not contain it.*rename {name} to prompt"):
        list(parse_lines([json.dumps({name: "Why?", "chosen": "So.", "rejected": "No."}).encode()], "in"))
    whole = {name: "Why?", "chosen": "Why? So.", "rejected": "Why? No."}
    chats = {name: "Why?"} | {
        kind: [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": kind}]
        for kind in ("chosen", "rejected")
    }
    assert all(line.is_pair for line in parse_lines([json.dumps(whole).encode(), json.dumps(chats).encode()], "in"))
