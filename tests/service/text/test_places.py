"""Where messages, steps and tokens stand in a text: against slow loops over its characters."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from plaudit_service.text.chat_template import compile_chat_template
from plaudit_service.text.places import (
    Marks,
    as_spans,
    find_places,
    read_marks,
    step_ends,
    step_tokens,
    with_marks,
)

CHATML = "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>\n{% endfor %}"
TRIMMED = CHATML.replace("m['content']", "m['content'] | trim")
LAST_ALONE = "{{ messages[-1]['content'] }}"
LOOKING = CHATML.replace("m['content']", "m['content'] | upper")

contents = st.text(st.sampled_from("ab \n😀é"), max_size=8)


@pytest.mark.parametrize("template", [CHATML, TRIMMED])
@given(st.lists(contents, min_size=1, max_size=4))
def test_every_content_is_found_where_the_template_writes_it(template, texts):
    messages = [{"role": "user", "content": text} for text in texts]
    render = compile_chat_template(template, {})
    rendered = render(messages)
    marks = read_marks(rendered, render(with_marks(messages)))
    found = {number: rendered[start:end] for start, end, number in marks.messages}
    assert found == {number: text.strip() for number, text in enumerate(texts) if text.strip()}


def test_a_message_that_the_template_leaves_out_is_not_found_and_others_keep_their_numbers():
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": None}, {"role": "x", "content": "b"}]
    render = compile_chat_template(LAST_ALONE, {})
    assert read_marks(render(messages), render(with_marks(messages))).messages == [(0, 1, 2)]


@pytest.mark.parametrize("content", ["a", "\ufdd0b0\ufdd1", "a\ufdd0e0\ufdd1b"])
def test_nothing_is_found_where_the_template_changes_the_marks_or_the_text_has_its_own(content):
    messages = [{"role": "user", "content": content}]
    render = compile_chat_template(LOOKING if content == "a" else CHATML, {})
    assert read_marks(render(messages), render(with_marks(messages)), num_steps=0) == Marks(messages=())


@given(st.lists(contents, min_size=1, max_size=4))
def test_the_steps_of_the_last_message_end_in_the_rendered_chat_where_they_end_in_its_content(steps):
    completion = "".join(steps)
    messages = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": completion}]
    for template in (CHATML, TRIMMED):
        render = compile_chat_template(template, {})
        rendered = render(messages)
        ends = read_marks(rendered, render(with_marks(messages, step_ends(0, steps))), len(steps)).step_ends
        if not completion.strip():
            assert ends is None
            continue
        start = rendered.rindex("|>" + completion.strip() if template == TRIMMED else "|>" + completion) + 2
        cut = len(completion) - len(completion.lstrip()) if template == TRIMMED else 0
        for end, number in zip(ends, range(1, len(steps) + 1), strict=True):
            before = "".join(steps[:number])
            if before.strip():
                assert rendered[start:end].rstrip() == before[cut:].rstrip()


def test_an_added_token_stands_where_the_token_before_it_ends():
    offsets = [(0, 0), (0, 3), (3, 4), (3, 4), (4, 7), (0, 0), (0, 0)]
    assert as_spans(offsets).tolist() == [[0, 0], [0, 3], [3, 4], [3, 4], [4, 7], [7, 7], [7, 7]]


spans = (
    st.lists(st.tuples(st.integers(0, 3), st.integers(1, 3)), min_size=1, max_size=12)
    .map(
        lambda sizes: [
            (sum(b for _, b in sizes[:at]) - (a > 2), sum(b for _, b in sizes[: at + 1]))
            for at, (a, _) in enumerate(sizes)
        ]
    )
    .map(lambda found: [(max(0, start), end) for start, end in found])
)


@given(spans, st.lists(st.integers(1, 40), max_size=6))
def test_a_step_ends_with_the_last_token_that_has_its_last_character(offsets, ends):
    found = as_spans(offsets)
    for token, end in zip(step_tokens(found, ends), ends, strict=True):
        having = [at for at, (start, stop) in enumerate(found.tolist()) if start < end <= stop]
        assert token == max(having, default=-1)


def test_a_token_ends_in_the_content_that_it_reaches_into():
    found = as_spans([(0, 0), (0, 2), (2, 5), (5, 9), (9, 12)])
    marks = Marks(messages=[(8, 11, 1), (1, 5, 0)])
    places = find_places(np.arange(5), found, marks, None)
    assert places.messages.tolist() == [-1, 0, 0, 1, -1]
    assert places.ends.tolist() == [0, 2, 5, 9, 12]
    assert find_places(np.arange(5), found, Marks(messages=()), None).messages.tolist() == [-1] * 5
    assert find_places(np.arange(5), found, Marks(), None).messages is None


def test_a_step_whose_token_is_cut_off_has_no_place_and_the_others_keep_their_numbers():
    found = as_spans([(at, at + 1) for at in range(8)])
    kept = np.array([0, 4, 5, 6])
    places = find_places(kept, found, Marks(), np.array([2, 4, -1, 6, 7]))
    assert (places.rows.tolist(), places.tokens.tolist()) == ([1, 3], [4, 6])
    assert (places.ends.tolist(), places.steps.tolist()) == ([5, 7], [1, 3])
