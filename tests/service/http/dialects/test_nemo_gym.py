"""NeMo-Gym's resources server: rollouts to chats, scores to rewards whose components add up, and what stands beside."""

import json
import math

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st
from running_app import run_app

from plaudit_service.bundles.bundle import Normalization
from plaudit_service.errors import InvalidRequest, NotJson
from plaudit_service.http.dialects import nemo_gym
from plaudit_service.http.dialects.dialect import Answered, Chosen
from plaudit_service.http.dialects.known_tokens import KnownTokens
from plaudit_service.serving.combining import parse_combination

VERIFY, SEED, CLOSE, AGGREGATE, REVERIFY = nemo_gym.ROUTES
USER = {"role": "user", "content": "q"}
CALL = {"type": "function_call", "name": "f", "call_id": "1", "arguments": '{"x": 1}'}
RESULT = {"type": "function_call_output", "call_id": "1", "output": "r"}
TOOL_CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": {"x": 1}}}


def said(*texts, **fields):
    content = [{"type": "output_text", "text": text, "annotations": []} for text in texts]
    return {"type": "message", "role": "assistant", "content": content, **fields}


def thought(*texts):
    return {"type": "reasoning", "id": "1", "summary": [{"type": "summary_text", "text": text} for text in texts]}


def rollout(output, given="q", **fields):
    params = {"input": given, **fields.pop("params", {})}
    return {"responses_create_params": params, "response": {"output": output, **fields.pop("response", {})}, **fields}


def read(route, body):
    return route.read(json.dumps(body).encode(), {}, KnownTokens())


def chat(body):
    (item,) = read(VERIFY, body).items
    return [message.to_template() for message in item.messages]


def turn(content, role="assistant", **fields):
    return {"role": role, "content": content, **fields}


USERS = turn("q", "user")


@pytest.mark.parametrize(
    ("body", "messages"),
    [
        (rollout([said("a")]), [USERS, turn("a")]),
        (rollout([said("a")], [USER]), [USERS, turn("a")]),
        (rollout([said("a", "b")], [{**USER, "type": "message"}]), [USERS, turn("ab")]),
        (rollout([said("a")], [{**USER, "content": [{"type": "input_text", "text": "q"}]}]), [USERS, turn("a")]),
        (rollout([said("a")], [{"role": "developer", "content": "s"}, USER]), [turn("s", "system"), USERS, turn("a")]),
        (
            rollout([said("a")], [{"role": "system", "content": "s"}, USER], params={"instructions": "i"}),
            [turn("i\n\ns", "system"), USERS, turn("a")],
        ),
        (rollout([said("a")], params={"instructions": "i"}), [turn("i", "system"), USERS, turn("a")]),
        (rollout([thought("t"), said("a")]), [USERS, turn("a", reasoning_content="t")]),
        (rollout([thought("t", "u"), thought("v"), said("a")]), [USERS, turn("a", reasoning_content="t\nu\nv")]),
        (rollout([{"type": "reasoning", "summary": [], "content": [{"text": "t"}]}, said("a")]),
         [USERS, turn("a", reasoning_content="t")]),
        (rollout([thought("t")]), [USERS, turn("", reasoning_content="t")]),
        (
            rollout([thought("t"), said("a"), CALL, RESULT, said("b")]),
            [
                USERS,
                turn("a", reasoning_content="t", tool_calls=[TOOL_CALL]),
                {"role": "tool", "content": "r", "tool_call_id": "1"},
                turn("b"),
            ],
        ),
        (rollout([CALL]), [USERS, {"role": "assistant", "tool_calls": [TOOL_CALL]}]),
        # What comes behind the policy's last turn is not scored.
        (rollout([said("a"), CALL, RESULT]), [USERS, turn("a", tool_calls=[TOOL_CALL])]),
        (rollout([said("b")], [USER, said("a"), USER]), [USERS, turn("a"), USERS, turn("b")]),
        (rollout([said("b")], [USER, said("a")]), [USERS, turn("ab")]),  # the policy went on with what it was given
    ],
)  # fmt: skip
def test_a_rollout_is_the_chat_up_to_the_policys_last_turn(body, messages):
    assert chat(body) == messages


@pytest.mark.parametrize("arguments", ["", "{", "[1]", "1", '{"x": NaN}', '"f"'])
def test_arguments_that_are_no_object_stay_what_the_policy_wrote(arguments):
    (_, message) = chat(rollout([{**CALL, "arguments": arguments}]))
    assert message["tool_calls"][0]["function"]["arguments"] == arguments


@pytest.mark.parametrize(
    ("body", "where"),
    [
        ({}, "responses_create_params"),
        ({"responses_create_params": {"input": "q"}}, "response"),
        (rollout([]), "response.output: the policy's output is empty"),
        (rollout([RESULT]), "response.output: the policy's output is empty"),
        (rollout([RESULT], [USER, CALL]), "response.output: the policy's output is empty"),
        (rollout([USER], [USER, said("a")]), "response.output: the policy's output is empty"),
        (rollout("a"), "response.output"),
        (rollout(["a"]), "response.output[0]"),
        (rollout([said("a")], 1), "responses_create_params.input"),
        (rollout([said("a")], ["q"]), "responses_create_params.input[0]: not an object"),
        (rollout([said("a")], [{"content": "q"}]), "responses_create_params.input[0].type"),
        (rollout([said("a")], [{"role": "critic", "content": "q"}]), "responses_create_params.input[0].role: 'critic'"),
        (rollout([said("a")], [{"role": "user"}]), "responses_create_params.input[0].content: 0 texts"),
        (rollout([said("a")], [{**USER, "content": [{"type": "input_text", "text": "q"}] * 2}]),
         "responses_create_params.input[0].content: 2 texts"),
        (rollout([said("a")], [{**USER, "content": [{"type": "input_image", "image_url": "x"}]}]),
         "responses_create_params.input[0].content[0].type: 'input_image'"),
        (rollout([said("a"), {"type": "web_search_call", "id": "1"}]), "response.output[1].type: 'web_search_call'"),
        (rollout([{**said(), "content": [{"type": "refusal", "refusal": "no"}]}]),
         "response.output[0].content[0].type: 'refusal'"),
        (rollout([said(1)]), "response.output[0].content[0].text"),
        (rollout([{**CALL, "arguments": {"x": 1}}]), "response.output[0].arguments"),
        (rollout([{"type": "function_call"}]), "response.output[0].name"),
        (rollout([said("a"), {**RESULT, "output": None}]), "response.output[1].output"),
        (rollout([{"type": "reasoning", "summary": "t"}]), "response.output[0].summary"),
        (rollout([{"type": ["message"], "role": "assistant"}]), "response.output[0].type"),
        (rollout([{"type": "message", "role": ["assistant"]}, said("a")]), "response.output[0].role"),
        (rollout([said("a")], params={"previous_response_id": "1"}), "responses_create_params.previous_response_id"),
        (rollout([said("a")], params={"prompt": {"id": "1"}}), "responses_create_params.prompt"),
        (rollout([said("a")], plaudit_model=1), "plaudit_model"),
        ([], "body"),
    ],
)  # fmt: skip
def test_what_no_chat_template_reads_is_refused_and_says_where(body, where):
    with pytest.raises(InvalidRequest) as caught:
        read(VERIFY, body)
    assert str(caught.value).startswith(where)


@pytest.mark.parametrize(
    ("response", "finished"),
    [
        ({}, True),
        ({"status": "completed", "incomplete_details": None}, True),
        ({"status": "incomplete"}, False),
        ({"incomplete_details": {"reason": "max_output_tokens"}}, False),
    ],
)
def test_a_response_that_was_cut_is_not_finished(response, finished):
    (item,) = read(VERIFY, rollout([said("a")], response=response)).items
    assert item.finished is finished


def verified(asked, score, terms=None):
    return json.loads(asked.write(Answered(Chosen("rm"), [score], [3], "abc", 0, [None], [terms])))


def test_the_answer_is_the_request_with_its_reward_and_what_adds_up_to_it():
    body = rollout([said("a", status="completed", logprobs=[0.1, 1e-300])], verifier={"x": [1, None]}, _ng_task_index=7)
    assert verified(read(VERIFY, body), 0.5) == {**body, "reward": 0.5}
    terms = {"a": 1.0, "b": -0.5}
    assert verified(read(VERIFY, body), 0.5, terms) == {**body, "reward": 0.5, "reward_components": terms}
    before = {**body, "reward": 9.0, "reward_components": {"old": 9.0}}  # as of a rollout that is verified again
    assert verified(read(VERIFY, before), 0.5) == {**body, "reward": 0.5}


@pytest.mark.parametrize("number", ["1e400", "NaN", "Infinity", "9" * 5000])
@pytest.mark.parametrize("route", [VERIFY, SEED, CLOSE, AGGREGATE])
def test_a_number_that_no_answer_could_repeat_is_refused_before_anything_is_computed(route, number):
    body = json.dumps(rollout([said("a")], verify_responses=[])).encode()[:-1] + b', "x": %b}' % number.encode()
    if number == "1e400" and route is not VERIFY:
        route.read(body, {}, KnownTokens())  # it is not repeated
        return
    with pytest.raises(NotJson):
        route.read(body, {}, KnownTokens())


@pytest.mark.parametrize("route", [SEED, CLOSE])
def test_there_is_no_session_but_its_name_is_repeated(route):
    assert read(route, rollout([], anything=1)).document == {}
    named = {"resources_session_id": "s-1", "episode_id": {"run": "r"}, "task_data": {}}
    assert read(route, named).document == {"resources_session_id": "s-1"}
    for broken in ([], 1, "a", None, {"resources_session_id": 1}, {"resources_session_id": ""}):
        with pytest.raises(InvalidRequest):
            read(route, broken)


def test_rollouts_can_be_verified_again():
    assert REVERIFY.read(b"", {}, KnownTokens()).document == "stateless"


def aggregated(rollouts):
    return json.loads(read(AGGREGATE, {"verify_responses": rollouts}).document)


def test_metrics_are_statistics_of_numbers_over_all_rollouts_and_by_task():
    rollouts = [
        {"_ng_task_index": 0, "reward": 1.0, "right": True, "text": "a", "response": {"usage": {"total_tokens": 10}}},
        {"_ng_task_index": 0, "reward": 3.0, "right": False, "response": {"usage": None}},
        {"_ng_task_index": 1, "reward": 2.0, "reward_components": {"a": 1.0}},
    ]
    document = aggregated(rollouts)
    overall = {"mean/reward": 2.0, "max/reward": 3.0, "min/reward": 1.0, "median/reward": 2.0, "std/reward": 1.0}
    assert document["agent_metrics"].items() >= overall.items()
    assert document["agent_metrics"]["mean/total_tokens"] == 10.0
    assert document["key_metrics"] == {"mean/reward": 2.0, "mean/right": 0.5, "mean/total_tokens": 10.0}
    first, second = document["group_level_metrics"]
    assert (first["_ng_task_index"], first["mean/reward"], first["num_rollouts"]) == (0, 2.0, 2)
    assert first["std/reward"] == pytest.approx(math.sqrt(2.0))
    assert (second["mean/reward"], second["std/reward"], second["num_rollouts"]) == (2.0, 0.0, 1)
    assert aggregated([]) == {"group_level_metrics": [], "agent_metrics": {}, "key_metrics": {}}
    huge = aggregated([{"reward": 1e308}, {"reward": -1e308}, {"reward": 1e308}])["agent_metrics"]
    assert huge.keys() >= {"max/reward", "min/reward"}
    assert "std/reward" not in huge
    for wrong in ({}, {"verify_responses": [1]}, {"verify_responses": [{"reward": 10**400}]}):
        with pytest.raises(InvalidRequest):
            read(AGGREGATE, wrong)


def test_more_columns_than_anyone_reads_are_refused(monkeypatch):
    monkeypatch.setattr(nemo_gym, "_MAX_COLUMNS", 4)
    two = {"reward": 1.0, "x": 1}
    assert len(aggregated([{**two, "_ng_task_index": task % 2} for task in range(6)])["group_level_metrics"]) == 2
    for many in ([{**two, "_ng_task_index": task} for task in range(3)], [dict.fromkeys("abcde", 1)]):
        with pytest.raises(
            InvalidRequest, match=r"verify_responses: \d columns of numbers .*, limit 4; send fewer tasks"
        ):
            aggregated(many)


def left_to_right(terms):
    total = 0.0
    for term in terms.values():
        total += term
    return total


finite = st.floats(-1e6, 1e6)


@given(st.lists(st.tuples(finite, finite), min_size=1, max_size=5))
def test_the_terms_of_a_weighted_sum_add_up_to_its_very_bits(parts):
    weights, scores = zip(*parts, strict=True)
    formula = "+".join(f"{weight!r}*m{number}" for number, weight in enumerate(weights))
    combination = parse_combination(f"all={formula}")
    terms = combination.terms(dict(zip(combination.parts, scores, strict=True)))
    assert left_to_right(terms) == combination.compute(scores)


def test_rewards_and_components_of_models_and_combinations(tiny_bundle):
    flags = {"dialects": "nemo-gym", "combine": ("sum=0.7*one+-0.3*two", "least=min(one,two)", "twice=2*one")}
    two_heads = {"a": 0.1, "normalization": 0.7}

    async def scenario(app):
        app.open_gates()

        async def ask(name):
            answer = await app.client.post("/verify", json=rollout([said("good fine")], plaudit_model=name))
            return answer.json()

        one, two, least = await ask("one"), await ask("two"), await ask("least")
        assert (one["reward"], two["reward"]) == (1.5, (3.0 * 0.7 + 1.5 * 0.1 - 0.5) / 2.0)
        assert (least["reward"], "reward_components" in one, "reward_components" in least) == (
            two["reward"],
            False,
            False,
        )
        assert list(two["reward_components"]) == ["a", "normalization", "_normalization"]
        assert left_to_right(two["reward_components"]) == pytest.approx(two["reward"], rel=1e-12)
        total, twice = await ask("sum"), await ask("twice")
        assert left_to_right(total["reward_components"]) == total["reward"]
        assert total["reward_components"] == {"one": 0.7 * 1.5, "two": -0.3 * two["reward"]}
        assert twice["reward_components"] == {"one": 3.0}
        assert total["plaudit_model"] == "sum"
        unnamed = await app.client.post("/verify", json=rollout([said("good")]))
        assert (unnamed.status_code, "several models are loaded" in unnamed.json()["detail"]) == (422, True)
        named = await app.client.post("/verify?model=one", json=rollout([said("good")]))
        assert named.json()["reward"] == 1.0

    bundles = (
        tiny_bundle(name="one"),
        tiny_bundle(name="two", heads=two_heads, normalization=Normalization(mean=0.5, std=2.0)),
    )
    run_app(scenario, *bundles, **flags)


def test_a_rollout_without_a_score_is_an_error_and_no_reward(serve, tiny_bundle):
    with serve(tiny_bundle(), flags=["--dialects", "nemo-gym"], env={"PLAUDIT_API_KEYS": "secret"}) as service:
        with httpx2.Client(base_url=service.url, headers={"Authorization": "Bearer secret"}) as client:
            assert client.post("/seed_session", json=rollout([])).json() == {}
            session = {"resources_session_id": "s", "episode_id": "e"}
            assert client.post("/close_session", json=session).json() == {"resources_session_id": "s"}
            assert client.post("/verify", json=rollout([said("good fine")])).json()["reward"] == 1.5
            for wrong in ("infinite", "crash", "good " * 99):
                answer = client.post("/verify", json=rollout([said(wrong)]))
                assert (answer.status_code, answer.json()["type"]) == (422, "urn:plaudit:item-failed")
                assert "reward" not in answer.json()
            assert client.get("/reverify_mode").json() == "stateless"
            assert client.head("/reverify_mode").status_code == 200
            assert client.post("/reverify_mode").status_code == 405
            aggregated = client.post("/aggregate_metrics", json={"verify_responses": [{"reward": 1.5}]})
            assert aggregated.json()["key_metrics"] == {"mean/reward": 1.5}
        for method, path in (("POST", "/verify"), ("POST", "/seed_session"), ("GET", "/reverify_mode")):
            assert httpx2.request(method, service.url + path, json={}).status_code == 401
