"""The dialects as trainers meet them: over sockets, next to /score."""

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import httpx2
import pytest
from running_app import run_app, until

from plaudit_service.bundles.bundle import Normalization
from plaudit_service.http.dialects.endpoint import made_from

ALL = "openrlhf,llamafactory,vllm,slime,tei,sglang,nemo-gym"
IN_BODY = ("/classify", "/v1/embeddings")  # their bodies name the model
CHAT = [{"role": "user", "content": "bad"}]


def bodies(text):
    return {
        "/get_reward": {"query": [text], "prompts": [""], "labels": [None]},
        "/v1/score/evaluation": {"model": "model", "messages": [text]},
        "/classify": {"input": text, "use_activation": False},
        "/slime": {"prompt": text, "response": "", "label": None},
        "/v1/embeddings": {"input": text},
    }


def number(path, answer):
    match path:
        case "/get_reward":
            return answer["rewards"][0]
        case "/v1/score/evaluation":
            return answer["scores"][0]
        case "/classify":
            return answer["data"][-1]["probs"][-1]
        case "/v1/embeddings":
            return answer["data"][-1]["embedding"][-1]
        case _:
            return answer


def post(service, path, body, **options):
    return httpx2.post(service.url + path, json=body, **options)


def test_no_dialect_is_answered_unless_it_is_named(serve, tiny_bundle):
    with serve(tiny_bundle(), flags=["--dialects", "slime"]) as service:
        statuses = {path: post(service, path, body).status_code for path, body in bodies("good").items()}
        assert statuses == {**dict.fromkeys(bodies(""), 404), "/slime": 200}
        for path in ("/predict", "/rerank", "/verify", "/seed_session", "/close_session", "/aggregate_metrics"):
            assert post(service, path, {}).status_code == 404
        assert post(service, "/", {}).status_code == 405  # the console's page, which GET answers


def test_an_unknown_dialect_is_one_clear_line(tiny_bundle):
    command = [str(Path(sys.executable).with_name("plaudit-serve")), str(tiny_bundle()), "--dialects", "slime,nemo"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 2
    assert ended.stderr == f"plaudit-serve: error: --dialects: 'nemo' is not one of {ALL.replace(',', ', ')}\n"


def test_every_dialect_gives_the_score_that_score_gives_with_keys_and_metrics(serve, tiny_bundle):
    bundle = tiny_bundle(normalization=Normalization(mean=1.0, std=2.0))
    key = {"Authorization": "Bearer secret"}
    with serve(bundle, flags=["--dialects", ALL], env={"PLAUDIT_API_KEYS": "secret"}) as service:
        score = post(service, "/score", {"items": [{"text": "good fine"}]}, headers=key).json()["results"][0]["score"]
        assert score == (1.5 - 1.0) / 2.0
        for path, body in bodies("good fine").items():
            assert post(service, path, body).status_code == 401
            assert number(path, post(service, path, body, headers=key).json()) == score
        metrics = httpx2.get(f"{service.url}/metrics", headers=key).text
        for path in bodies(""):
            assert f'plaudit_requests_total{{outcome="ok",route="{path}"}} 1.0' in metrics
        assert f'plaudit_sequences_total{{model="tiny",status="ok"}} {1 + len(bodies(""))}.0' in metrics
        answered = [line for line in service.events("request") if line["route"] in bodies("") and line["status"] == 200]
        assert [line["sequences"] for line in answered] == [1] * len(bodies(""))


def test_raw_scores_and_truncation_are_the_operators_choice(serve, tiny_bundle):
    bundle = tiny_bundle(normalization=Normalization(mean=1.0, std=2.0), max_tokens=24)
    flags = ["--dialects", ALL, "--dialect-raw", "--dialect-truncation", "left"]
    with serve(bundle, flags=flags) as service:
        for path, body in bodies("awful " + "good " * 23).items():
            assert number(path, post(service, path, body).json()) == 23.0


@pytest.mark.parametrize("text", ["good " * 100, "infinite", "crash", "", "[BOS]"])
def test_a_sequence_without_a_score_makes_the_whole_call_422_and_no_number(serve, tiny_bundle, text):
    with serve(tiny_bundle(), flags=["--dialects", ALL]) as service:
        for path, body in bodies(text).items():
            for key in ("query", "messages", "input"):
                if key in body:
                    body[key] = ["good", text]
            body.pop("prompts", None)
            body.pop("labels", None)
            answer = post(service, path, body)
            assert answer.status_code == 422, (path, answer.text)
            assert answer.json()["type"] == "urn:plaudit:item-failed"
            remedy = 'limit 64 (model "tiny"); shorten it, or start the service with --dialect-truncation left'
            assert answer.json()["detail"].endswith(remedy) is (len(text) > 100)
            assert not {"rewards", "scores", "data"} & answer.json().keys()


def test_an_empty_openrlhf_request_gets_empty_lists(serve, tiny_bundle):
    with serve(tiny_bundle(), flags=["--dialects", "openrlhf"]) as service:
        answer = post(service, "/get_reward", {"query": [], "prompts": [], "labels": []})
        assert (answer.status_code, answer.json()["rewards"], answer.json()["scores"]) == (200, [], [])


def test_texts_of_another_tokenizer_are_refused_with_the_remedy_and_chats_are_scored(serve, tiny_bundle):
    with serve(tiny_bundle(), flags=["--dialects", ALL]) as service:
        for path, body in bodies("<|im_start|>user good").items():
            answer = post(service, path, body)
            assert answer.status_code == 422
            assert "special token <|im_start|>" in answer.json()["detail"]
            assert "docs/trainers" in answer.json()["detail"]
        for path, body in bodies("[BOS] good").items():  # it knows this one
            assert number(path, post(service, path, body).json()) == 1.0
        prompt = "<|im_start|>bad<|im_end|>"
        body = {"query": [f"{prompt}awful<|im_end|>"], "prompts": [prompt], "labels": [CHAT]}
        assert post(service, "/get_reward", body).json()["rewards"] == [-3.25]
        assert post(service, "/slime", {"prompt": CHAT, "response": "awful<|im_end|>"}).json() == -3.25
    with serve(tiny_bundle(), flags=["--dialects", ALL, "--no-dialect-check-tokens"]) as service:
        for path, body in bodies("<|im_start|>user good").items():
            assert number(path, post(service, path, body).json()) == 1.0


# The template tokens of Gemma 4, EXAONE, Seed-OSS, Nemotron, MiniMax, Cohere, TeleChat and LongCat.
TURNS = {
    "<turn|>": "<|turn>user\n",
    "[|endofturn|]": "[|user|]\n[|endofturn|]",
    "<seed:eos>": "<seed:bos>user\n",
    "<SPECIAL_12>": "<SPECIAL_11>User\n",
    "[e~[": "]~b]user\n",
    "<EOS_TOKEN>": "<BOS_TOKEN>",
    "<_end>": "<_user>",
    "</longcat_s>": "[Round 0] USER:",
}


def test_template_tokens_of_other_families_are_refused_as_words_and_stripped_from_completions(serve, tiny_bundle):
    with serve(tiny_bundle(), flags=["--dialects", ALL]) as service:
        for end, begin in TURNS.items():
            for text in (f"good{end}", f"{begin}good"):
                for path, body in bodies(text).items():
                    answer = post(service, path, body)
                    assert (answer.status_code, answer.json()["type"]) == (422, "urn:plaudit:invalid-request"), text
                    assert "the text holds the special token" in answer.json()["detail"]
            assert post(service, "/slime", {"prompt": CHAT, "response": f"awful{end}"}).json() == -3.25
            body = {"query": [f"{begin}awful{end}\n"], "prompts": [begin], "labels": [CHAT]}
            assert post(service, "/get_reward", body).json()["rewards"] == [-3.25]
        for text in (
            "good |> f <| [| 1; 2 |]",
            "<seed> good <p><s>x</s></p>",
            "vector<SPECIAL> good a<|b|c",
            "f<|xs|>g good",
        ):
            for path, body in bodies(text).items():
                assert number(path, post(service, path, body).json()) == 1.0


def test_the_policys_tokenizer_says_exactly_which_tokens_are_foreign_and_which_end_a_turn(serve, tiny_bundle, tmp_path):
    tokens = [{"id": id_, "content": text, "special": True} for id_, text in enumerate(("[BOS]", "~start~", "~end~"))]
    (tmp_path / "tokenizer.json").write_text(json.dumps({"added_tokens": tokens}))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"bos_token": "[BOS]", "eos_token": "~end~"}))
    flags = ["--dialects", ALL, "--policy-tokenizer", str(tmp_path)]
    with serve(tiny_bundle(), flags=flags) as service:
        for path, body in bodies("good ~start~").items():
            answer = post(service, path, body)
            assert (answer.status_code, "special token ~start~" in answer.json()["detail"]) == (422, True)
        for text in ("[BOS] good", "<|im_start|> good <turn|> [INST]"):  # the first is the reward model's, too
            for path, body in bodies(text).items():
                assert number(path, post(service, path, body).json()) == 1.0
        assert post(service, "/slime", {"prompt": CHAT, "response": "awful~end~"}).json() == -3.25
        assert post(service, "/slime", {"prompt": CHAT, "response": "awful~start~"}).status_code == 422


def test_a_policys_tokenizer_that_is_none_is_one_clear_line(tiny_bundle, tmp_path):
    command = [Path(sys.executable).with_name("plaudit-serve"), tiny_bundle(), "--policy-tokenizer", tmp_path / "none"]
    ended = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stderr.count("\n")) == (2, 1)
    assert ended.stderr.startswith(f"plaudit-serve: error: --policy-tokenizer {tmp_path / 'none'}: holds neither")


THINKING = (
    "{% for m in messages %}{{ m.content }} {{ m.reasoning_content }} {{ m.name is defined }} "
    "{% for call in m.tool_calls or [] %}{% for key in call.arguments or {} %}bad {% endfor %}{% endfor %}{% endfor %}"
)
# As a table with other rows has it; the template would write a word for every key.
NULLS = [{"name": "f", "id": None, "arguments": {"unit": None, "city": None}}]


@pytest.mark.parametrize(
    ("message", "score"),
    [
        ({"role": "user", "content": "bad"}, -3.25),
        ({"role": "user", "content": "bad", "name": None, "tool_calls": None, "refusal": None}, -3.25),
        ({"role": "user", "content": [{"type": "text", "text": "bad", "image": None}]}, -3.25),
        ({"role": "user", "content": "bad", "reasoning_content": "good"}, -2.25),
        ({"role": "assistant", "content": None, "tool_calls": [{"name": "f"}], "reasoning_content": "good"}, -1.25),
        ({"role": "assistant", "content": None, "tool_calls": NULLS, "reasoning_content": "good"}, -1.25),
        ({"role": "user", "content": "bad", "id": 7}, "id: not a field of a message that chat templates read"),
        ({"role": "user", "content": [{"type": "text", "text": "bad"}] * 2}, "content: 2 parts"),
        ({"role": "user", "content": None}, "content: missing"),
    ],
)
def test_a_chat_is_scored_as_one_or_refused_and_never_taken_for_a_plain_label(serve, tiny_bundle, message, score):
    prompt = "<|im_start|>bad<|im_end|>"
    label = {"query": [f"{prompt}awful<|im_end|>"], "prompts": [prompt]}
    calls = {
        "/get_reward": ({**label, "labels": [[message]]}, "labels[0][0]"),
        "/get_reward?text": ({**label, "labels": [json.dumps([message])]}, "labels[0][0]"),
        "/slime": ({"prompt": [message], "response": "awful"}, "prompt[0]"),
        "/classify": (
            {"messages": [message, {"role": "assistant", "content": "awful"}], "use_activation": False},
            "mess",
        ),
        "/score": ({"items": [{"messages": [message], "completions": ["awful"]}]}, "items[0].messages[0]"),
    }
    with serve(tiny_bundle(chat_template=THINKING), flags=["--dialects", ALL]) as service:
        for path, (body, where) in calls.items():
            answer = post(service, path, body)
            if isinstance(score, str):
                assert answer.status_code == 422, path
                assert answer.json()["detail"].startswith(where)
                assert score in answer.json()["detail"]
            else:
                given = answer.json()
                given = given["results"][0]["score"] if path == "/score" else number(path.split("?")[0], given)
                assert given == score, path


def test_over_the_wire_html_is_scored_whole_and_a_chat_of_another_data_set_is_no_plain_label(serve, tiny_bundle):
    with serve(tiny_bundle(), flags=["--dialects", ALL]) as service:
        for text in ("good <s>x\ny</s>", "good <s>x <b>y</b></s>", "<s>x <i>y</i></s> good"):
            for path, body in bodies(text).items():
                assert number(path, post(service, path, body).json()) == 1.0, text
        for label in ({"messages": CHAT, "id": 3}, [{"from": "human", "content": "bad"}], [{"role": "user"}]):
            answer = post(service, "/get_reward", {"query": ["good"], "prompts": ["g"], "labels": [label]})
            assert (answer.status_code, answer.json()["detail"][:9]) == (422, "labels[0]"), label
        answer = post(service, "/get_reward", {"query": ["good"], "labels": [{"from": "EUR", "value": 12}]})
        assert answer.json()["rewards"] == [1.0]


def test_a_model_that_was_trained_on_pairs_reads_texts_alone(serve, tiny_bundle):
    with serve(tiny_bundle(pair=True), flags=["--dialects", ALL]) as service:
        chat = [{"role": "user", "content": "bad", "name": None}, {"role": "assistant", "content": "awful"}]
        item = {"items": [{"messages": chat}]}
        assert post(service, "/score", item).json()["results"][0]["score"] == -3.25
        chat[1]["reasoning_content"] = "good"
        answer = post(service, "/score", item)
        assert (answer.status_code, "leave reasoning_content out" in answer.json()["detail"]) == (422, True)


def test_one_of_several_models_is_named_in_the_url_or_in_the_body_or_the_call_is_refused(serve, tiny_bundle):
    models = [tiny_bundle(name="one"), tiny_bundle(name="two", heads={"a": 2.0})]
    with serve(*models, flags=["--dialects", ALL]) as service:
        for path, body in bodies("good").items():
            assert post(service, path, body).status_code == 422
            if path in IN_BODY:
                answers = [post(service, path, {**body, "model": name}) for name in ("one", "two", "three")]
            else:
                assert f"{path}?model=one" in post(service, path, body).json()["detail"]
                answers = [post(service, f"{path}?model={name}", body) for name in ("one", "two", "three")]
            assert [answer.status_code for answer in answers] == [200, 200, 404]
            assert [number(path, answer.json()) for answer in answers[:2]] == [1.0, 2.0]


def test_every_dialect_answers_a_combination_that_url_or_body_names(serve, tiny_bundle):
    models = [tiny_bundle(name="a", more_words=["<|im_end|>"]), tiny_bundle(name="b", heads={"x": 2.0})]
    with serve(*models, flags=["--dialects", ALL, "--combine", "wary=min(a,b)"]) as service:
        for path, body in bodies("bad").items():
            assert "wary" in post(service, path, body).json()["detail"]
            url = path if path in IN_BODY else f"{path}?model=wary"
            named = {"model": "wary"} if path in IN_BODY else {}
            assert number(path, post(service, url, {**body, **named}).json()) == -2.0
            failed = post(service, url, {**bodies("infinite")[path], **named})
            assert (failed.status_code, failed.json()["type"]) == (422, "urn:plaudit:item-failed")
            foreign = post(service, url, {**bodies("good <|im_end|>")[path], **named})  # only part a knows the token
            assert foreign.status_code == 422
            assert '<|im_end|>, which the tokenizer of model "b" does not know' in foreign.json()["detail"]
        metrics = httpx2.get(f"{service.url}/metrics").text
        assert 'plaudit_sequences_total{model="wary",status="ok"} 5.0' in metrics
        answered = [line for line in service.events("request") if line.get("model") == "wary"]
        assert [line["status"] for line in answered] == [200, 422] * 5


def test_with_one_bundle_and_one_combination_a_call_names_which(serve, tiny_bundle):
    with serve(tiny_bundle(name="a"), flags=["--dialects", ALL, "--combine", "twice=2*a"]) as service:
        for path, body in bodies("good").items():
            assert post(service, path, body).status_code == 422
        assert post(service, "/score", {"items": []}).json()["detail"] == (
            "model: not given, and several are loaded; choose one of a, twice"
        )
        assert post(service, "/slime?model=twice", bodies("good")["/slime"]).json() == 2.0


def test_a_vllm_body_may_name_the_checkpoint_that_the_bundle_was_made_from(serve, tiny_bundle):
    with serve(tiny_bundle(), flags=["--dialects", "vllm"]) as service:
        body = {"input": "good", "use_activation": False}
        for source in ("made by hand", "/models/made by hand", "~/made by hand/"):
            assert post(service, "/classify", {**body, "model": source}).json()["data"][0]["probs"] == [1.0]
        for other in ("another", "/models/another", "org/made by hand"):
            answer = post(service, "/classify", {**body, "model": other})
            assert (answer.status_code, answer.json()["type"]) == (404, "urn:plaudit:unknown-model")


SOURCES = {"helpful": "rm", "harmless": "org/rm", "fp32": "twice", "int8": "twice"}


@pytest.mark.parametrize(
    ("checkpoint", "model"),
    [
        ("rm", "helpful"),
        ("/models/rm", "helpful"),
        ("./rm/", "helpful"),
        ("../models/rm", "helpful"),
        ("org/rm", "harmless"),
        ("/models/other/rm", "helpful"),
        ("/models/rm/checkpoint-500", None),
        ("/models/my-rm", None),
        ("other/rm", None),  # a hub id, not a path
        ("/models/org/rm", None),  # it ends in both sources
        ("twice", None),
        ("/models/twice", None),
        ("/", None),
        ("", None),
    ],
)
def test_a_checkpoint_is_the_source_of_one_model_or_of_none(checkpoint, model):
    assert made_from(checkpoint, SOURCES) == model


@pytest.fixture
def in_process(tiny_bundle):
    """Runs a scenario against the application in this process, with an engine that the test holds."""

    def run(scenario, **settings):
        def with_parts(app):
            return scenario(app.client, app.engine, app.service.metrics.registry.get_sample_value)

        run_app(with_parts, tiny_bundle(), dialects=ALL, **settings)

    return run


def ask(client, text):
    return asyncio.create_task(client.post("/slime", json={"prompt": text, "response": ""}))


def test_where_the_queue_is_full_score_sheds_and_a_dialect_waits_in_a_bounded_room(in_process):
    async def scenario(client, engine, value):
        words = ["good", "bad", "fine", "awful", "good good", "fine fine"]
        # Two batches are handed to the engine; then two sequences fill the queue.
        tasks = []
        for text in words[:4]:
            before = value("plaudit_queued_sequences") + value("plaudit_running_sequences")
            tasks.append(ask(client, text))
            await until(
                lambda b=before: value("plaudit_queued_sequences") + value("plaudit_running_sequences") == b + 1
            )
        shed = await client.post("/score", json={"items": [{"text": "x"}, {"text": "y"}]})
        assert shed.status_code == 429
        tasks += [ask(client, text) for text in words[4:]]
        await until(lambda: value("plaudit_waiting_requests") == 2)
        over = await ask(client, "good bad")
        assert (over.status_code, over.headers["retry-after"]) == (503, "1")
        engine.gate.set()
        assert [(await task).json() for task in tasks] == [1.0, -1.0, 0.5, -2.25, 2.0, 1.0]
        assert value("plaudit_waiting_requests") == 0

    in_process(scenario, max_queued_sequences=2, max_waiting_requests=2, max_batch_tokens=1)


def test_a_trainer_that_fills_the_waiting_room_leaves_a_place_for_another_client(tiny_bundle, tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("trainer\nperson\n")

    async def scenario(app):
        def ask_as(key, text):
            body, headers = bodies(text)["/slime"], {"Authorization": f"Bearer {key}"}
            return asyncio.create_task(app.client.post("/slime", json=body, headers=headers))

        burst = [ask_as("trainer", "good")]
        await until(lambda: app.value("queued_sequences") + app.value("running_sequences") == 1)
        burst += [ask_as("trainer", text) for text in ("bad", "fine", "awful")]
        await until(lambda: app.value("waiting_requests") + app.value("queued_sequences") == 3)
        refused = await ask_as("trainer", "good good")
        assert refused.status_code == 503
        assert refused.json()["detail"] == "3 requests wait, 3 of them this client's, limit 4; try again later"
        person = ask_as("person", "good bad")
        await until(lambda: app.value("queued_sequences") + app.value("running_sequences") == 2)
        app.open_gates()
        assert [(await task).json() for task in (*burst, person)] == [1.0, -1.0, 0.5, -2.25, 0.0]

    settings = {"max_queued_sequences": 1, "max_waiting_requests": 4, "max_batch_tokens": 1}
    run_app(scenario, tiny_bundle(), dialects=ALL, api_key_file=str(keys), **settings)


def test_a_deadline_of_a_dialects_request_is_503_wherever_it_passes_because_some_never_repeat_a_4xx(in_process):
    async def scenario(client, engine, value):
        headers = {"X-Request-Timeout-S": "0.05"}
        running = [ask(client, "good"), ask(client, "bad")]
        await until(lambda: value("plaudit_running_sequences") == 2)
        queued = await client.post("/slime", json=bodies("fine")["/slime"], headers=headers)
        assert (queued.status_code, queued.json()["type"]) == (503, "urn:plaudit:unavailable")
        assert queued.json()["detail"] == "the deadline of X-Request-Timeout-S passed before any sequence was computed"
        fills = ask(client, "awful")
        await until(lambda: value("plaudit_queued_sequences") == 1)
        waited = await client.post("/slime", json=bodies("fine")["/slime"], headers=headers)
        assert (waited.status_code, waited.headers["retry-after"]) == (503, "1")
        assert waited.json()["detail"] == (
            "the deadline of X-Request-Timeout-S passed while the request waited for room"
        )
        assert (value("plaudit_waiting_requests"), value("plaudit_queued_sequences")) == (0, 1)
        engine.gate.set()
        assert [(await task).json() for task in (*running, fills)] == [1.0, -1.0, -2.25]
        for timeout_s, status in (("0", 503), ("soon", 422), ("30", 200)):
            headers = {"X-Request-Timeout-S": timeout_s}
            answer = await client.post("/slime", json=bodies("fine")["/slime"], headers=headers)
            assert answer.status_code == status

    in_process(scenario, max_queued_sequences=1, max_batch_tokens=1)


def test_a_dialect_never_sheds_with_429_because_some_trainers_never_repeat_a_4xx(in_process):
    async def scenario(client, engine, value):
        async def endless():
            yield b'{"prompt": "good '
            reading.set()
            await held.wait()
            yield b'", "response": ""}'

        engine.gate.set()
        reading, held = asyncio.Event(), asyncio.Event()
        slow = asyncio.create_task(client.post("/slime", content=endless()))
        await reading.wait()
        answer = await ask(client, "g" * 60)
        assert (answer.status_code, answer.json()["type"]) == (503, "urn:plaudit:unavailable")
        held.set()
        assert (await slow).json() == 1.0

    in_process(scenario, max_pending_bytes=90)


def test_a_request_that_could_never_fit_the_queue_does_not_wait(in_process):
    async def scenario(client, engine, value):
        body = {"query": ["good"] * 4}
        answer = await client.post("/get_reward", content=json.dumps(body).encode())
        assert (answer.status_code, answer.json()["type"]) == (413, "urn:plaudit:too-large")

    in_process(scenario, max_queued_sequences=3)


def test_a_trainer_that_leaves_gives_its_place_in_the_waiting_room_back(tiny_bundle):
    async def scenario(app):
        held = []
        for count, text in enumerate(("good", "bad", "fine"), 1):  # two for the engine, and the queue is full
            held.append(ask(app.client, text))
            await until(lambda n=count: app.value("running_sequences") + app.value("queued_sequences") == n)
        leaving = app.start_post("/slime", bodies("awful")["/slime"])
        await until(lambda: app.value("waiting_requests") == 1)
        assert (await ask(app.client, "good good")).status_code == 503  # the room is full
        await leaving.leave()
        assert app.value("requests_total", route="/slime", outcome="cancelled") == 1
        assert app.value("waiting_requests") == 0
        held.append(ask(app.client, "good good"))
        await until(lambda: app.value("waiting_requests") == 1)
        app.open_gates()
        assert [(await task).json() for task in held] == [1.0, -1.0, 0.5, 2.0]

    run_app(scenario, tiny_bundle(), dialects=ALL, max_queued_sequences=1, max_waiting_requests=1, max_batch_tokens=1)
