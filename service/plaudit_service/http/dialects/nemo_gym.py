"""NeMo-Gym: a resources server, which scores the last turn of a rollout. Source: nemo_gym/base_resources_server.py.

An answer repeats the whole request, as NeMo-Gym's own servers do: the rest of its pipeline reads it from there.
"""

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SkipValidation

from plaudit_service.errors import InvalidRequest, NotJson
from plaudit_service.http.dialects.dialect import (
    Answered,
    Asked,
    DialectRoute,
    Settled,
    Shape,
    check_shape,
    parse_object,
)
from plaudit_service.http.dialects.responses import read_rollout
from plaudit_service.http.dialects.special_tokens import SpecialTokens

_REWARD, _COMPONENTS = "reward", "reward_components"
_TASK = "_ng_task_index"
_SESSION = "resources_session_id"
# Names of numbers, counted in each task: the answer has five statistics of each.
_MAX_COLUMNS = 65_536


class _Params(Shape):
    # Checked where it is read: of a union, an error would tell why it is not the other form.
    input: SkipValidation[str | list[dict[str, Any]]]
    instructions: str | None = None
    previous_response_id: None = None  # what it and a prompt of a server's hold is not known here
    prompt: None = None


class _Response(Shape):
    output: list[dict[str, Any]] = Field(fail_fast=True)
    status: str | None = None
    incomplete_details: Any = None


class _Verify(Shape):
    model_config = ConfigDict(extra="allow")

    responses_create_params: _Params
    response: _Response
    plaudit_model: str | None = Field(None, description="Name of a loaded model or combination, if there are several.")


class _Session(Shape):
    resources_session_id: str | None = Field(None, min_length=1)


class _Aggregate(Shape):
    verify_responses: list[dict[str, Any]] = Field(fail_fast=True)


def read_verify(body: bytes, _: Mapping[str, str], __: SpecialTokens) -> Asked:
    """One rollout: the chat up to the policy's last turn."""
    document = parse_object(body)
    asked = check_shape(_Verify, document)
    params, response = asked.responses_create_params, asked.response
    finished = response.status != "incomplete" and response.incomplete_details is None
    item = read_rollout(params.instructions, params.input, response.output, finished=finished)
    # Written before anything is computed: not every number that can be read can be written.
    echo = _written({key: value for key, value in document.items() if key not in (_REWARD, _COMPONENTS)})

    def write(answered: Answered) -> bytes:
        (score,), (terms,) = answered.scores, answered.terms
        given = {_REWARD: score, **({_COMPONENTS: terms} if terms else {})}
        return b"%b,%b" % (echo[:-1], _written(given)[1:])

    return Asked([item], write, model=asked.plaudit_model)


def read_session(body: bytes, _: Mapping[str, str], __: SpecialTokens) -> Settled:
    """A score is a function of the rollout alone: there is no session to begin or to end, and its name is repeated."""
    name = check_shape(_Session, parse_object(body)).resources_session_id
    return Settled({} if name is None else {_SESSION: name})


def read_reverify_mode(_: bytes, __: Mapping[str, str], ___: SpecialTokens) -> Settled:
    """Rollouts can be verified again, at any time and in any order."""
    return Settled("stateless")


def read_aggregate(body: bytes, _: Mapping[str, str], __: SpecialTokens) -> Settled:
    """Statistics of the numbers that rollouts have at their top, and of their tokens, over all and by task."""
    rollouts = check_shape(_Aggregate, parse_object(body)).verify_responses
    by_task: dict[int, list[Mapping[str, float]]] = defaultdict(list)
    for rollout in rollouts:
        task = rollout.get(_TASK)
        by_task[task if isinstance(task, int) else 0].append(_numbers(rollout))
    num_columns = sum(len(set().union(*numbers)) for numbers in by_task.values())
    if num_columns > _MAX_COLUMNS:
        raise InvalidRequest(
            f"verify_responses: {num_columns} columns of numbers (names of each task), limit {_MAX_COLUMNS}; send "
            "fewer tasks at once"
        )
    over_all = _statistics(numbers for task in by_task.values() for numbers in task)
    groups = [
        {_TASK: task, **_statistics(numbers), "num_rollouts": len(numbers)} for task, numbers in sorted(by_task.items())
    ]
    key_metrics = {name: value for name, value in over_all.items() if name.startswith("mean/")}
    return Settled(_written({"group_level_metrics": groups, "agent_metrics": over_all, "key_metrics": key_metrics}))


def _written(document: Any) -> bytes:
    try:
        return json.dumps(document, allow_nan=False, separators=(",", ":")).encode()
    except ValueError as error:
        raise NotJson("a number is out of range; send finite ones") from error


def _numbers(rollout: Mapping[str, Any]) -> dict[str, float]:
    """What can be averaged, by name; a truth is 1 or 0."""
    response = rollout.get("response")
    usage = response.get("usage") if isinstance(response, dict) else None
    values = {**rollout, **(usage if isinstance(usage, dict) else {})}
    try:
        return {
            name: float(value)
            for name, value in values.items()
            if isinstance(value, int | float) and not name.startswith("_ng_")
        }
    except OverflowError as error:
        raise InvalidRequest("verify_responses: a number is out of range") from error


def _statistics(rollouts: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """NeMo-Gym's statistics by name; the deviation of one value is 0. What is out of range is left out."""
    columns: dict[str, list[float]] = defaultdict(list)
    for rollout in rollouts:
        for name, value in rollout.items():
            columns[name].append(value)
    return {
        f"{kind}/{name}": value
        for name, values in columns.items()
        for kind, value in _of_column(values)
        if math.isfinite(value)
    }


def _of_column(values: Sequence[float]) -> Iterator[tuple[str, float]]:
    num, ascending = len(values), sorted(values)
    mean = sum(values) / num
    yield "mean", mean
    yield "max", ascending[-1]
    yield "min", ascending[0]
    yield "median", (ascending[(num - 1) // 2] + ascending[num // 2]) / 2
    yield "std", math.sqrt(sum((value - mean) * (value - mean) for value in values) / max(1, num - 1))


class _Verified(BaseModel):
    model_config = ConfigDict(extra="allow")

    responses_create_params: dict[str, Any]
    response: dict[str, Any]
    reward: float
    reward_components: dict[str, float] | None = Field(
        None, description="What adds up to the reward, of several heads or a weighted sum of models; else left out."
    )


class _Named(BaseModel):
    resources_session_id: str | None = Field(None, description="As the request says; else left out.")


class _Aggregated(BaseModel):
    group_level_metrics: list[dict[str, Any]]
    agent_metrics: dict[str, float]
    key_metrics: dict[str, float]


_ROLLOUT = {
    "responses_create_params": {"input": [{"role": "user", "content": "PROMPT"}]},
    "response": {
        "output": [{"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "COMPLETION"}]}]
    },
}

ROUTES = (
    DialectRoute("/verify", "nemo_gym_verify", read_verify, _Verify, _Verified, example=_ROLLOUT),
    DialectRoute("/seed_session", "nemo_gym_seed_session", read_session, _Session, _Named, scores=False),
    DialectRoute("/close_session", "nemo_gym_close_session", read_session, _Session, _Named, scores=False),
    DialectRoute(
        "/aggregate_metrics",
        "nemo_gym_aggregate_metrics",
        read_aggregate,
        _Aggregate,
        _Aggregated,
        example={"verify_responses": [{_TASK: 0, _REWARD: 0.5}]},
        scores=False,
    ),
    DialectRoute(
        "/reverify_mode",
        "nemo_gym_reverify_mode",
        read_reverify_mode,
        None,
        Literal["stateless"],
        scores=False,
        method="GET",
    ),
)
