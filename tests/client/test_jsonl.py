import json
from collections import Counter

import pytest

from plaudit_client.errors import InvalidArgument
from plaudit_client.jsonl import Summary, form_chunks, parse_lines, render
from plaudit_client.scores import Score


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


def test_blank_lines_are_left_out_but_counted():
    lines = [b"\n", b'"a"\n', b"  \r\n", b'"b"']
    assert [line.copied["line"] for line in parse_lines(lines, "in.jsonl")] == [2, 4]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{", "in.jsonl:2: not JSON: "),
        (b"NaN", "in.jsonl:2: not JSON: NaN"),
        (b'"\xff"', "in.jsonl:2: not JSON: "),
        (b"[" * 100_000, "in.jsonl:2: not JSON: "),
        (b"3", "in.jsonl:2: got int; give a str"),
        (b"null", "in.jsonl:2: got NoneType"),
        (b'{"text": "a", "label": 1}', "in.jsonl:2: unknown keys label; leave only"),
        (b'{"text": "a", "prompt": "b"}', "in.jsonl:2: keys prompt, text; give one of"),
        (b'{"text": 3}', r"in.jsonl:2\.text: got int"),
        (b'{"chosen": "a"}', "in.jsonl:2: keys chosen; a preference pair has"),
        (b'{"chosen": "a", "rejected": "b", "prompt": "c"}', "in.jsonl:2: keys chosen, prompt, rejected;"),
        (b'{"chosen": [], "rejected": "b"}', "in.jsonl:2: chosen and rejected are not both texts"),
    ],
)
def test_a_wrong_line_is_named_by_file_and_number(line, message):
    with pytest.raises(InvalidArgument, match=message):
        list(parse_lines([b'"fine"', line], "in.jsonl"))


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
