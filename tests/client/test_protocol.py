import json

import pytest

from plaudit_client import errors
from plaudit_client.errors import FingerprintChanged, InvalidAnswer, RequestRejected, ServiceUnavailable
from plaudit_client.protocol import Limits, Options, Reply, check_status, merge, parse_answer, parse_limits, split_items
from plaudit_client.scores import Along, Score, Scores

OK = {"status": "ok", "score": 1.25, "num_tokens": 3, "truncated": False}
TOO_LONG = {"status": "too_long", "score": None, "num_tokens": 9000, "truncated": False, "detail": "too many"}
IDENTITY = {"model": "rm", "fingerprint": "sha256:1", "engine": "cpu"}


def reply(body, status=200, **headers):
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    named = {key.replace("_", "-"): value for key, value in headers.items()}
    return Reply("POST http://a/score", status, named, content, 100_000)


def answer(*results, **changes):
    return reply(IDENTITY | {"results": list(results)} | changes)


def split(items, **limits):
    return [json.loads(request.body)["items"] for request in split_items(items, Options(), Limits(**limits))]


# Requests


def test_a_body_holds_the_items_and_only_the_options_that_say_something():
    items = [{"text": "a\ud800ü"}]
    (plain,) = split_items(items, Options(), Limits())
    assert json.loads(plain.body) == {"items": items, "truncation": "error", "raw": False}
    options = Options("rm", "left", raw=True, fingerprint="sha256:1", engine="cpu")
    (full,) = split_items(items, options, Limits())
    assert json.loads(full.body) == IDENTITY | {"items": items, "truncation": "left", "raw": True}


def test_a_call_is_split_by_sequences_in_order():
    items = [{"text": str(index)} for index in range(5)]
    assert split(items, max_sequences=2) == [items[:2], items[2:4], items[4:]]


def test_a_group_is_never_split_and_one_over_the_limit_goes_alone():
    pair = {"prompt": "p", "completions": ["a", "b"]}
    four = {"prompt": "p", "completions": ["a", "b", "c", "d"]}
    one = {"text": "t"}
    assert split([one, pair, one, four, one], max_sequences=3) == [[one, pair], [one], [four], [one]]


def test_no_request_has_more_characters_than_allowed_a_groups_prompt_counted_for_each_completion():
    group = {"prompt": "a" * 9, "completions": ["b", "b"]}  # 20 characters
    items = [group, {"text": "a" * 10}, {"text": "a"}, group, group]
    assert split(items, max_chars=30) == [items[:2], items[2:4], items[4:]]


def test_no_body_is_over_the_limit_of_bytes_unless_one_item_is():
    items = [{"text": "x" * size} for size in (10, 40, 90, 10, 500, 10)]
    requests = list(split_items(items, Options(), Limits(max_body_bytes=200)))
    assert [item for request in requests for item in json.loads(request.body)["items"]] == items
    assert [len(request.body) <= 200 for request in requests] == [True, True, False, True]


def test_a_request_knows_which_items_and_how_many_sequences_it_has():
    items = [{"text": "a"}, {"prompt": "p", "completions": ["a", "b"]}, {"text": "b"}]
    first, second = split_items(items, Options(), Limits(max_sequences=3))
    assert (first.first_item, first.num_items, first.num_sequences) == (0, 2, 3)
    assert (second.first_item, second.num_items, second.num_sequences) == (2, 1, 1)


# Status


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_a_status_that_may_pass_is_unavailable(status):
    with pytest.raises(ServiceUnavailable) as caught:
        check_status(reply({"detail": "queue full"}, status, retry_after="2"))
    assert (caught.value.status, caught.value.retry_after_s) == (status, 2.0)
    assert str(caught.value) == f"POST http://a/score: status {status}: queue full"


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, RequestRejected),
        (401, errors.Unauthorized),
        (404, errors.UnknownModel),
        (409, errors.FingerprintMismatch),
        (413, errors.RequestTooLarge),
        (422, errors.InvalidRequest),
        (204, RequestRejected),
        (302, RequestRejected),
        (501, RequestRejected),
    ],
)
def test_any_other_status_is_a_rejection_of_its_kind(status, kind):
    with pytest.raises(RequestRejected) as caught:
        check_status(reply({"type": "urn:x", "detail": "items[3]: wrong\nshape"}, status))
    assert type(caught.value) is kind
    assert (caught.value.status, caught.value.problem_type) == (status, "urn:x")
    assert caught.value.detail == "items[3]: wrong shape"


@pytest.mark.parametrize("body", [b"<html>", b"", b"[1]", b'{"detail": 3}', b"[" * 100_000])
def test_a_rejection_without_a_problem_document_says_to_check_the_url(body):
    with pytest.raises(RequestRejected, match="status 404; check that the URL is that of a scoring service"):
        check_status(reply(body, 404))


# Answers


def test_a_right_answer_becomes_scores():
    heads = OK | {"heads": {"a": 1, "b": -2.5}}
    scores = parse_answer(answer(OK, TOO_LONG, heads, future_field=1), 3, Options())
    assert scores == Scores(
        (
            Score("ok", 1.25, 3),
            Score("too_long", None, 9000, detail="too many"),
            Score("ok", 1.25, 3, heads={"a": 1.0, "b": -2.5}),
        ),
        "rm",
        "sha256:1",
        "cpu",
    )


def test_results_in_another_order_than_the_request_are_refused_where_the_service_says_their_indexes():
    first, second = OK | {"index": 0}, OK | {"index": 1, "score": 2.0}
    assert parse_answer(answer(first, second), 2, Options()).floats == [1.25, 2.0]
    with pytest.raises(InvalidAnswer, match="results are not in the order of the request"):
        parse_answer(answer(second, first), 2, Options())
    with pytest.raises(InvalidAnswer, match=r"results\[1\]\.index is not 1"):
        parse_answer(answer(first, first), 2, Options())


@pytest.mark.parametrize(
    ("result", "what"),
    [
        (OK | {"score": None}, r"results\[0\]\.score is not a number"),
        ({"status": "ok"}, r"results\[0\]\.score is not a number"),
        (OK | {"score": "1.0"}, r"score is not a number"),
        (OK | {"score": True}, r"score is not a number"),
        (OK | {"score": 10**400}, r"score is not finite"),
        (TOO_LONG | {"score": 0.0}, r"has a score although its status is too_long"),
        (TOO_LONG | {"heads": {"a": 1.0}}, r"has a score although its status is too_long"),
        (OK | {"status": "fine"}, r"status is unknown"),
        (OK | {"status": ["ok"]}, r"status is unknown"),
        (OK | {"heads": [1.0]}, r"heads is not an object"),
        (OK | {"heads": {"a": None}}, r"heads\.a is not a number"),
        (OK | {"num_tokens": -1}, r"num_tokens is not a whole number"),
        (OK | {"num_tokens": 1.5}, r"num_tokens is not a whole number"),
        (OK | {"truncated": "no"}, r"truncated is neither true nor false"),
        (TOO_LONG | {"detail": 3}, r"detail is not a string"),
        (1.25, r"results\[0\] is not an object"),
        (OK | {"index": 1}, r"results\[0\]\.index is not 0: the results are not in the order of the request"),
        (OK | {"index": "0"}, r"results\[0\]\.index is not 0"),
        (OK | {"index": False}, r"results\[0\]\.index is not 0"),
    ],
)
def test_a_wrong_result_is_refused_and_never_a_number(result, what):
    with pytest.raises(InvalidAnswer, match=what):
        parse_answer(answer(result), 1, Options())


ALONG = {"tokens": [0, 7], "scores": [0.5, 1], "trained": False, "ends": [1, 9], "messages": [None, 0], "steps": [0, 2]}
EXPLAINED = Options(along="steps", explain=True)


def test_values_along_a_text_are_read_as_columns():
    (score,) = parse_answer(answer(OK | {"along": ALONG, "text": "a text"}), 1, EXPLAINED)
    assert score.along == Along((0, 7), (0.5, 1.0), False, (1, 9), (None, 0), (0, 2))
    assert score.text == "a text"
    (failed,) = parse_answer(answer(TOO_LONG), 1, EXPLAINED)
    assert (failed.along, failed.text) == (None, None)
    ids_alone = {name: ALONG[name] for name in ("tokens", "scores", "trained")}
    (score,) = parse_answer(answer(OK | {"along": ids_alone}), 1, Options(along="tokens"))
    assert score.along == Along((0, 7), (0.5, 1.0), trained=False)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"along": None}, r"results\[0\]\.along is missing"),
        ({"along": [0.5]}, r"along is not an object"),
        ({"along": ALONG | {"scores": None}}, r"along\.scores is not a list"),
        ({"along": ALONG | {"scores": [0.5, None]}}, r"along\.scores is not a number"),
        ({"along": ALONG | {"scores": [0.5, 10**400]}}, r"along\.scores is not finite"),
        ({"along": ALONG | {"tokens": [0]}}, r"along\.tokens is not a list as long as"),
        ({"along": ALONG | {"tokens": None}}, r"along\.tokens is not a list as long as"),
        ({"along": ALONG | {"tokens": [0, None]}}, r"along\.tokens has an entry that is not a whole number"),
        ({"along": ALONG | {"tokens": [0, True]}}, r"along\.tokens has an entry that is not a whole number"),
        ({"along": ALONG | {"ends": [0, -1]}}, r"along\.ends has an entry that is not a whole number"),
        ({"along": ALONG | {"messages": [0, 1.5]}}, r"along\.messages has an entry that is not a whole number"),
        ({"along": ALONG | {"steps": None}}, r"along\.steps is not a list as long as"),
        ({"along": ALONG | {"trained": None}}, r"along\.trained is neither true nor false"),
        ({"along": ALONG, "text": 3}, r"text is not a string"),
    ],
)
def test_broken_values_along_a_text_are_refused(changes, what):
    with pytest.raises(InvalidAnswer, match=what):
        parse_answer(answer(OK | changes), 1, EXPLAINED)


@pytest.mark.parametrize("result", [OK | {"along": ALONG}, OK | {"text": "a text"}, TOO_LONG | {"along": ALONG}])
def test_what_was_not_asked_for_is_refused(result):
    with pytest.raises(InvalidAnswer, match=r"not what was asked for|was not asked for"):
        parse_answer(answer(result), 1, EXPLAINED if result["status"] == "too_long" else Options())


def test_an_answer_may_be_longer_the_more_is_asked_for():
    items = [{"text": "a" * 1000}]

    def bound(limits=Limits(), **asked):  # noqa: B008  a value
        (request,) = split_items(items, Options(**asked), limits)
        return request.max_answer_bytes

    plain, explained = bound(), bound(explain=True)
    assert explained - plain >= 12 * 1000  # a character as JSON escapes it
    limited = bound(Limits(max_along_tokens=10), along="tokens")
    assert plain < limited < bound(along="tokens") < bound(along="tokens", explain=True)


def test_a_call_for_values_along_texts_is_split_by_the_services_limit_of_their_tokens():
    items = [{"text": "a" * 10}, {"prompt": "a" * 4, "steps": ["b", "c"]}, {"text": "a" * 5}]
    requests = split_items(items, Options(along="tokens"), Limits(max_along_tokens=16, max_chars=100))
    assert [request.num_items for request in requests] == [2, 1]
    assert split(items, max_along_tokens=16) == [items]


@pytest.mark.parametrize("number", [b"NaN", b"Infinity", b"-Infinity", b"1e999"])
def test_a_score_that_is_not_finite_is_refused(number):
    body = answer(OK).body.replace(b"1.25", number)
    with pytest.raises(InvalidAnswer, match=r"contains|not finite"):
        parse_answer(reply(body), 1, Options())


@pytest.mark.parametrize(
    ("wrong", "what"),
    [
        (reply(b"<html>", content_type="text/html"), r"not JSON \(text/html\); check that the URL"),
        (reply(b""), "not JSON"),
        (reply(b"\xff\xfe\xff"), "not JSON"),
        (reply(b"[" * 50_000), "not JSON"),
        (reply(b"[]"), "not a JSON object"),
        (reply(b"x" * 100_001), "longer than 100000 bytes"),
        (reply(b"", content_encoding="gzip"), "content-encoding 'gzip' was not asked for"),
        (answer(OK, model=None), "model is missing"),
        (answer(OK, engine=""), "engine is missing"),
        (answer(OK, results=None), "results is not a list"),
        (answer(OK, OK), "2 results for 1 sequences"),
        (answer(), "0 results for 1 sequences"),
    ],
)
def test_an_answer_that_is_not_a_full_set_of_results_is_refused(wrong, what):
    with pytest.raises(InvalidAnswer, match=what):
        parse_answer(wrong, 1, Options())


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        (Options(model="other"), InvalidAnswer),
        (Options(fingerprint="sha256:2"), FingerprintChanged),
        (Options(engine="gpu"), FingerprintChanged),
    ],
)
def test_an_answer_by_something_else_than_was_asked_for_is_refused(options, kind):
    with pytest.raises(kind) as caught:
        parse_answer(answer(OK), 1, options)
    assert type(caught.value) is kind


def test_the_parts_of_a_call_are_joined_in_order():
    first, second = (Scores((Score("ok", score),), "rm", "sha256:1", "cpu") for score in (1.0, 2.0))
    assert merge([first, second]).floats == [1.0, 2.0]


def test_parts_computed_by_different_reward_models_are_not_joined():
    first, second = (Scores((Score("ok", 1.0),), "rm", fingerprint, "cpu") for fingerprint in ("sha256:1", "sha256:2"))
    with pytest.raises(FingerprintChanged, match="fingerprint is sha256:2, pinned is sha256:1"):
        merge([first, second])


def test_limits_are_read_from_info():
    info = {"limits": {"max_sequences_per_request": 8, "max_body_bytes": 1000, "more": 1}, "models": []}
    assert parse_limits(reply(info)) == Limits(8, 1000)
    info["limits"]["max_request_chars"] = 500
    assert parse_limits(reply(info)) == Limits(8, 1000, 500)
    info["limits"]["max_along_tokens"] = 50
    assert parse_limits(reply(info)) == Limits(8, 1000, 500, 50)


@pytest.mark.parametrize("info", [{}, {"limits": []}, {"limits": {"max_sequences_per_request": 0}}])
def test_an_info_without_limits_is_refused(info):
    with pytest.raises(InvalidAnswer, match=r"limits\.max_sequences_per_request is not a positive integer"):
        parse_limits(reply(info))
