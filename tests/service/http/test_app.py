"""The service as a user meets it: a real process on a real socket."""

import asyncio
import gzip
import json
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest
from running_app import run_app, until

from plaudit_service.bundles.bundle import load_bundle
from plaudit_service.results import Status
from plaudit_service.serving.service import Service
from plaudit_service.settings import Settings
from plaudit_service.testing import score_by_hand

SECRET = "this-is-a-secret-text"


def post(service, body, path="/score", **options):
    content = body if isinstance(body, str | bytes) else json.dumps(body)
    return httpx2.post(f"{service.url}{path}", content=content, **options)


def problem(response):
    assert response.headers["content-type"] == "application/problem+json"
    document = response.json()
    assert document["status"] == response.status_code
    return document


def test_score_answers_every_item_form_and_names_what_computed_it(serve, tiny_bundle):
    bundle = tiny_bundle()
    with serve(bundle) as service:
        answer = post(
            service,
            {
                "items": [
                    {"text": "good fine"},
                    {"prompt": "bad", "completions": [" good", " bad bad"]},
                    {"messages": [{"role": "user", "content": "bad"}], "completions": ["awful"]},
                    {"token_ids": [1, 4]},
                    {"text": "crash"},
                ]
            },
        )
        assert answer.status_code == 200
        assert answer.json() | {"results": None} == {
            "model": "tiny",
            "fingerprint": load_bundle(bundle).fingerprint,
            "engine": "onnxruntime-cpu-fp32",
            "results": None,
        }
        results = answer.json()["results"]
        assert [result["score"] for result in results] == [1.5, 0.0, -3.0, -3.25, 1.0, None]
        assert [result["index"] for result in results] == [0, 1, 2, 3, 4, 5]
        assert results[0] == {"index": 0, "status": "ok", "score": 1.5, "num_tokens": 3, "truncated": False}
        assert results[-1]["status"] == "failed"
        assert {part.split(";")[0] for part in answer.headers["server-timing"].split(", ")} == {
            "queue",
            "tokenize",
            "infer",
        }


PROBLEMS = [
    ("{", 400, "not-json"),
    ({"items": [{"text": 1}]}, 422, "invalid-request"),
    ({"items": [{"text": "a", "prompt": "b"}]}, 422, "invalid-request"),
    ({"items": [{"prompt": "b"}]}, 422, "invalid-request"),
    ({"items": [{"messages": []}]}, 422, "invalid-request"),
    ({"items": [{}]}, 422, "invalid-request"),
    ({"items": [], "unknown": 1}, 422, "invalid-request"),
    ({"items": [], "truncation": "middle"}, 422, "invalid-request"),
    ({"items": [{"token_ids": [99]}]}, 422, "invalid-request"),
    ({"items": [{"token_ids": [10**25]}]}, 422, "invalid-request"),
    ({"items": [1] * 60_000}, 422, "invalid-request"),
    ({"items": [{"text": ""}] * 65_537}, 413, "too-large"),
    ({"items": [{"prompt": "good " * 15, "completions": ["fine"] * 8}]}, 413, "too-large"),
    ({"items": [{"messages": [{"role": "x" * 200, "content": "good"}]}]}, 413, "too-large"),
    ({"items": [], "model": "other"}, 404, "unknown-model"),
    ({"items": [], "fingerprint": "sha256:0"}, 409, "mismatch"),
    ({"items": [], "engine": "openvino"}, 409, "mismatch"),
    ({"items": [{"text": "good"}] * 9}, 413, "too-large"),
    ({"items": [{"prompt": "good", "completions": ["x"] * 9}]}, 413, "too-large"),
    ({"items": [{"text": "good " * 30}]}, 413, "too-large"),
    ({"items": [{"text": "x" * 2000}]}, 413, "too-large"),
    ({"items": [], "along": "words"}, 422, "invalid-request"),
    ({"items": [{"text": "good"}], "along": "tokens"}, 422, "invalid-request"),
    ({"items": [{"prompt": "b", "completion": "c", "steps": ["c"]}]}, 422, "invalid-request"),
    ({"items": [{"prompt": "b", "steps": []}]}, 422, "invalid-request"),
    ({"items": [{"prompt": "good", "steps": ["x" * 100]}]}, 413, "too-large"),
]


def test_every_wrong_request_gets_its_problem_type(serve, tiny_bundle):
    flags = ["--max-sequences-per-request", "8", "--max-text-chars", "100", "--max-request-chars", "500"]
    with serve(tiny_bundle(), flags=flags) as service:
        for body, status, slug in PROBLEMS:
            document = problem(post(service, body))
            assert (document["status"], document["type"]) == (status, f"urn:plaudit:{slug}"), body
        assert post(service, {"items": []}).json()["results"] == []
        for method, path, status in (("GET", "/nowhere", 404), ("GET", "/score", 405)):
            assert problem(httpx2.request(method, service.url + path))["status"] == status


def test_a_body_in_small_chunks_is_accepted_and_a_long_one_is_refused_without_content_length(serve, tiny_bundle):
    with serve(tiny_bundle(), flags=["--max-body-bytes", "1000"]) as service:
        body = json.dumps({"items": [{"text": "good"}]}).encode()
        chunks = (body[at : at + 6] for at in range(0, len(body), 6))
        answer = httpx2.post(f"{service.url}/score", content=chunks)
        assert answer.json()["results"][0]["score"] == 1.0
        answer = httpx2.post(f"{service.url}/score", content=(b" " * 100 for _ in range(20)))
        assert problem(answer)["type"] == "urn:plaudit:too-large"


def test_a_deadline_that_has_passed_is_504_and_one_that_is_no_number_is_422(serve, tiny_bundle):
    with serve(tiny_bundle()) as service:
        for value, status in (("0", 504), ("-1", 504), ("soon", 422), ("nan", 422), ("30", 200)):
            answer = post(service, {"items": [{"text": "good"}]}, headers={"X-Request-Timeout-S": value})
            assert answer.status_code == status, value


def test_concurrent_requests_share_batches_and_keep_their_scores(serve, tiny_bundle):
    with serve(tiny_bundle()) as service, ThreadPoolExecutor(16) as pool:
        texts = ["good " * (number % 7 + 1) + "bad" for number in range(200)]
        answers = list(pool.map(lambda text: post(service, {"items": [{"text": text}]}).json(), texts))
        assert [answer["results"][0]["score"] for answer in answers] == [score_by_hand(text) for text in texts]


@pytest.fixture
def in_process(tiny_bundle):
    """Runs a scenario against the application in this process, with a clock and an engine that the test holds."""

    def run(scenario, **settings):
        def with_parts(app):
            return scenario(app.client, app.engine, app.clock, app.service.metrics.registry)

        run_app(with_parts, tiny_bundle(), **settings)

    return run


def test_a_deadline_that_passes_in_the_queue_is_504_for_a_request_and_expired_for_a_sequence(in_process):
    async def scenario(client, engine, clock, registry):
        first = asyncio.create_task(client.post("/score", json={"items": [{"text": "good"}]}))
        await asyncio.to_thread(engine.entered.wait, 10)
        body = {"items": [{"text": "fine"}, {"text": ""}]}
        late = asyncio.create_task(client.post("/score", json=body, headers={"X-Request-Timeout-S": "5"}))
        alone = asyncio.create_task(
            client.post("/score", json={"items": [{"text": "awful"}]}, headers={"X-Request-Timeout-S": "5"})
        )
        in_time = asyncio.create_task(
            client.post("/score", json={"items": [{"text": "bad"}]}, headers={"X-Request-Timeout-S": "50"})
        )
        await until(lambda: registry.get_sample_value("plaudit_queued_sequences") == 3)
        clock[0] += 10
        engine.gate.set()
        statuses = [[result["status"] for result in (await task).json()["results"]] for task in (first, late, in_time)]
        assert statuses == [["ok"], ["expired", "empty"], ["ok"]]
        assert problem(await alone)["type"] == "urn:plaudit:expired"

    in_process(scenario)


def test_an_engine_that_hangs_fails_liveness_and_open_requests_get_503(in_process):
    async def scenario(client, engine, _, __):
        answers = await asyncio.gather(*(client.post("/score", json={"items": [{"text": w}]}) for w in ("good", "bad")))
        for answer in answers:
            assert problem(answer)["type"] == "urn:plaudit:unavailable"
            assert "the engine hangs" in answer.json()["detail"]
        assert (await client.get("/healthz")).status_code == 503
        assert "the engine hangs" in (await client.get("/readyz")).json()["detail"]
        assert (await client.post("/score", json={"items": []})).status_code == 503

    in_process(scenario, engine_timeout_s=0.1)


def test_bodies_that_are_being_read_have_a_bound_together_and_alone(in_process):
    async def scenario(client, engine, _, __):
        engine.gate.set()
        body = {"items": [{"text": "good"}]}
        assert (await client.post("/score", json=body)).status_code == 200
        answer = await client.post("/score", json={"items": [{"text": "good " * 30}]})
        assert problem(answer)["type"] == "urn:plaudit:too-large"

        async def endless():
            yield b'{"items": ['
            reading.set()
            await held.wait()
            yield b"]}"

        reading, held = asyncio.Event(), asyncio.Event()
        slow = asyncio.create_task(client.post("/score", content=endless()))
        await reading.wait()
        answer = await client.post("/score", json={"items": [{"text": "g" * 60}]})
        assert problem(answer)["type"] == "urn:plaudit:queue-full"
        assert answer.headers["retry-after"] == "1"
        held.set()
        assert (await slow).status_code == 200

    in_process(scenario, max_pending_bytes=150)


def test_truncated_sequences_and_normalized_scores_are_counted(in_process):
    async def scenario(client, engine, _, registry):
        engine.gate.set()
        items = [{"text": "good " * 100}]
        await client.post("/score", json={"items": items, "truncation": "left"})
        await client.post("/score", json={"items": [{"text": "good"}], "raw": True})
        assert registry.get_sample_value("plaudit_truncated_total") == 1
        assert registry.get_sample_value("plaudit_score_count", {"model": "tiny"}) == 1

    in_process(scenario)


def test_a_service_that_began_to_drain_during_the_check_does_not_become_ready(tiny_bundle):
    async def scenario():
        service = Service([load_bundle(tiny_bundle())], Settings())
        service.start()
        service.drain()
        await service.wait_until_checked()
        await service.stop()
        assert service.not_ready == "the service is shutting down"

    asyncio.run(scenario())


def test_the_start_up_check_is_not_bound_by_the_queue_limits(in_process):
    async def scenario(client, engine, _, __):
        engine.gate.set()
        assert (await client.get("/readyz")).status_code == 200

    in_process(scenario, max_queued_sequences=1, max_queued_tokens=1)


def test_a_key_protects_all_but_the_probes(serve, tiny_bundle, tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("first-key\nsecond-key\n", encoding="utf-8-sig")  # as editors on Windows write it
    with serve(tiny_bundle(), flags=["--api-key-file", str(keys)], env={"PLAUDIT_API_KEYS": "third-key"}) as service:
        for key in ("first-key", "second-key", "third-key"):
            assert post(service, {"items": []}, headers={"Authorization": f"Bearer {key}"}).status_code == 200
        for header in ({}, {"Authorization": "Bearer first"}, {"Authorization": "Basic first-key"}):
            assert problem(post(service, {"items": []}, headers=header))["type"] == "urn:plaudit:unauthorized"
        for path, status in (("/healthz", 200), ("/health", 200), ("/readyz", 200), ("/info", 401), ("/metrics", 401)):
            assert httpx2.get(service.url + path).status_code == status, path


def test_models_and_combinations_are_listed_as_openais_clients_ask_for_them_and_behind_the_key(serve, tiny_bundle):
    bundles, key = (tiny_bundle(name="a"), tiny_bundle(name="b")), {"Authorization": "Bearer a-key"}
    with serve(*bundles, flags=["--combine", "both=a+b"], env={"PLAUDIT_API_KEYS": "a-key"}) as service:
        assert httpx2.get(f"{service.url}/v1/models").status_code == 401
        models = httpx2.get(f"{service.url}/v1/models", headers=key).json()
        assert (models["object"], [model["id"] for model in models["data"]]) == ("list", ["a", "b", "both"])
        assert all((model["object"], model["owned_by"]) == ("model", "plaudit") for model in models["data"])
        assert 'route="/v1/models"' in httpx2.get(f"{service.url}/metrics", headers=key).text


def test_no_route_ever_redirects(serve, tiny_bundle):
    with serve(tiny_bundle(), flags=["--dialects", "openrlhf,llamafactory,vllm,slime"]) as service:
        paths = [*httpx2.get(f"{service.url}/openapi.json").json()["paths"], "/docs", "/openapi.json", "/docs-assets"]
        for path in (*paths, "/docs/oauth2-redirect", "/console"):
            for method in ("GET", "HEAD", "POST", "PUT"):
                answer = httpx2.request(method, f"{service.url}{path}/", content="{}")
                assert answer.status_code in {404, 405}, (method, path)
                assert answer.headers["content-type"] == "application/problem+json"
        assert problem(post(service, {"items": []}, headers={"Host": "rm.example"}, path="/score/"))["status"] == 404


def test_a_head_request_is_answered_as_get_without_the_body(serve, tiny_bundle):
    with serve(tiny_bundle(), env={"PLAUDIT_API_KEYS": "a-key"}) as service, httpx2.Client() as client:
        for key in ({}, {"Authorization": "Bearer a-key"}):
            for path in ("/health", "/healthz", "/readyz", "/info", "/docs", "/openapi.json", "/nothing"):
                head, get = (client.request(method, service.url + path, headers=key) for method in ("HEAD", "GET"))
                assert (head.status_code, head.content) == (get.status_code, b""), path
                assert head.headers["content-type"] == get.headers["content-type"]
                assert head.headers["content-length"] == str(len(get.content))
        assert {client.head(f"{service.url}{probe}").status_code for probe in ("/health", "/healthz", "/readyz")} == {
            200
        }
        refused = client.post(f"{service.url}/healthz")
        assert (refused.status_code, refused.headers["allow"]) == (405, "GET, HEAD")


def test_a_compressed_body_is_415_and_says_why_also_for_dialects(serve, tiny_bundle):
    body = gzip.compress(json.dumps({"items": [{"text": "good"}]}).encode())
    dialects = "openrlhf,llamafactory,vllm,slime,sglang,nemo-gym"
    with serve(tiny_bundle(), flags=["--dialects", dialects]) as service:
        scoring = ("/score", "/get_reward", "/v1/score/evaluation", "/classify", "/slime", "/v1/embeddings", "/verify")
        scoring += ("/pooling",)
        for path in (*scoring, "/seed_session", "/close_session", "/aggregate_metrics"):
            for encoding in ("gzip", "x-deflate", "identity, gzip"):
                answer = post(service, body, headers={"Content-Encoding": encoding}, path=path)
                assert problem(answer)["type"] == "urn:plaudit:compressed-body"
                assert f"Content-Encoding {encoding}; send it without" in answer.json()["detail"]
                assert (answer.status_code, answer.headers["accept-encoding"]) == (415, "identity")
        answer = post(service, {"items": [{"text": "good"}]}, headers={"Content-Encoding": "identity"})
        assert answer.json()["results"][0]["score"] == 1.0


def test_no_text_reaches_the_log_and_every_request_has_one_line(serve, tiny_bundle):
    with serve(tiny_bundle()) as service:
        items = [{"text": SECRET}, {"prompt": SECRET, "steps": [SECRET]}]
        explained = post(service, {"items": items, "explain": True}).json()["results"]
        assert [result["text"] for result in explained] == [SECRET, 2 * SECRET]
        post(service, {"items": [{"text": SECRET, SECRET: 1}]})
        post(service, SECRET, headers={"X-Request-Id": "my-id"})
        assert service.stop() == 0
        assert SECRET not in service.log.read_text()
        lines = [line for line in service.events("request") if line["route"] == "/score"]
        assert [(line["status"], line["outcome"]) for line in lines] == [
            (200, "ok"),
            (422, "invalid-request"),
            (400, "not-json"),
        ]
        assert lines[0]["sequences"] == 2
        assert lines[2]["request_id"] == "my-id"


def test_values_along_a_text_are_answered_in_columns_up_to_a_limit_of_tokens(serve, causal_bundle):
    with serve(causal_bundle, flags=["--max-along-tokens", "40"]) as service:
        chat = {"messages": [{"role": "user", "content": "Wie geht es?"}], "steps": ["Gut. ", "Und dir?"]}
        for along in ("tokens", "steps"):
            (result,) = post(service, {"items": [chat], "along": along, "explain": True}).json()["results"]
            columns, text = result["along"], result["text"]
            assert columns.pop("trained") is False
            assert columns.keys() == {"tokens", "scores", "ends", "messages"} | (
                {"steps"} if along == "steps" else set()
            )
            assert {len(column) for column in columns.values()} == {result["num_tokens"] if along == "tokens" else 2}
            if along == "tokens":
                assert (columns["scores"][-1], columns["ends"][-1]) == (result["score"], len(text))
        assert [text[:end].rpartition("assistant\n")[2] for end in columns["ends"]] == ["Gut.", "Gut. Und dir?"]
        assert columns["messages"] == [1, 1]
        few, many = ({"items": [{"text": "no " * 15}] * count} for count in (1, 3))
        assert post(service, few | {"along": "tokens"}).status_code == 200
        assert post(service, many).status_code == 200
        document = problem(post(service, many | {"along": "tokens"}))
        assert (document["status"], document["type"]) == (413, "urn:plaudit:too-large")
        assert document["detail"] == "the request asks for values along more than 40 tokens; split it"


def test_a_request_id_is_echoed_and_a_strange_one_replaced(serve, tiny_bundle):
    with serve(tiny_bundle()) as service:
        assert post(service, "{", headers={"X-Request-Id": "abc-1"}).headers["x-request-id"] == "abc-1"
        assert post(service, "{", headers={"X-Request-Id": "a b"}).headers["x-request-id"] != "a b"


def test_info_shows_models_limits_and_the_parity_of_the_start(serve, tiny_bundle):
    bundle = tiny_bundle(name="rm-v2")
    with serve(bundle) as service:
        info = httpx2.get(f"{service.url}/info").json()
        (model,) = info["models"]
        assert model["name"] == "rm-v2"
        assert model["fingerprint"] == load_bundle(bundle).fingerprint
        assert model["manifest"] == json.loads((bundle / "bundle.json").read_text())
        assert model["parity"]["ok"] is True
        assert model["parity"]["batch_invariant"] is True
        assert info["limits"]["max_sequences_per_request"] == 1024


def test_metrics_count_what_happened(serve, tiny_bundle):
    with serve(tiny_bundle()) as service:
        before = httpx2.get(f"{service.url}/metrics").text
        post(service, {"items": [{"text": "good fine"}, {"text": ""}]})
        post(service, "{")
        after = httpx2.get(f"{service.url}/metrics").text

    def grown(name):
        def value(text):
            return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith(name + " "))

        return value(after) - value(before)

    assert grown('plaudit_sequences_total{model="tiny",status="ok"}') == 1
    assert grown('plaudit_sequences_total{model="tiny",status="empty"}') == 1
    assert grown('plaudit_requests_total{outcome="ok",route="/score"}') == 1
    assert grown('plaudit_requests_total{outcome="not-json",route="/score"}') == 1
    assert grown('plaudit_rejected_total{reason="not-json"}') == 1
    assert grown('plaudit_score_count{model="tiny"}') == 1
    assert grown('plaudit_score_bucket{le="1.0",model="tiny"}') == 0
    assert grown('plaudit_score_bucket{le="2.0",model="tiny"}') == 1
    assert grown("plaudit_computed_tokens_total") == 3
    assert "plaudit_ready 1.0" in after
    assert 'plaudit_parity_ok{model="tiny"} 1.0' in after
    assert "process_resident_memory_bytes" in after
    for status in Status:
        assert f'plaudit_sequences_total{{model="tiny",status="{status}"}} 0.0' in before


def test_a_bundle_that_does_not_give_its_reference_scores_is_never_ready(serve, tiny_bundle):
    with serve(tiny_bundle(golden_offset=0.01)) as service:
        assert service.events("not_ready")
        ready = httpx2.get(f"{service.url}/readyz")
        assert ready.status_code == 503
        assert "does not give its reference scores: golden text" in ready.json()["detail"]
        assert httpx2.get(f"{service.url}/healthz").status_code == 200
        answer = post(service, {"items": [{"text": "good"}]})
        assert problem(answer)["type"] == "urn:plaudit:unavailable"
        assert answer.headers["retry-after"] == "1"
        assert 'plaudit_parity_ok{model="tiny"} 0.0' in httpx2.get(f"{service.url}/metrics").text


def test_several_bundles_are_served_by_name(serve, tiny_bundle):
    with serve(tiny_bundle(name="one"), tiny_bundle(name="two", heads={"x": 2.0})) as service:
        items = [{"text": "good"}]
        assert post(service, {"items": items, "model": "one"}).json()["results"][0]["score"] == 1.0
        assert post(service, {"items": items, "model": "two"}).json()["results"][0]["score"] == 2.0
        document = problem(post(service, {"items": items}))
        assert document["detail"] == "model: not given, and several are loaded; choose one of one, two"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_service_with_exit_code_0(serve, tiny_bundle, number):
    with serve(tiny_bundle()) as service:
        service.process.send_signal(number)
        assert service.process.wait(30) == 0


def run_serve(*arguments):
    command = [str(Path(sys.executable).with_name("plaudit-serve")), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_what_the_user_gave_wrong_ends_in_one_line_and_exit_code_2(tiny_bundle, tmp_path):
    bundle = tiny_bundle()
    damaged = tiny_bundle()
    (damaged / "model.onnx").write_bytes(b"truncated")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        cases = [
            ([tmp_path / "nowhere", "--port", "0"], "does not exist"),
            ([damaged, "--port", "0"], "model.onnx has sha256"),
            ([bundle, "--port", str(port)], f"port {port} of 127.0.0.1 is in use"),
            ([bundle, "--port", "http"], "--port: 'http' is not a whole number"),
            ([bundle, "--port", "0", "--drain-timeout-s", "inf"], "--drain-timeout-s: 'inf' is not a finite number"),
            ([bundle, bundle, "--port", "0"], 'two bundles are named "tiny"'),
            ([], "the following arguments are required: BUNDLE"),
            ([bundle, "--host", "0.0.0.0"], "--allow-unauthenticated"),
            ([bundle, "--api-key-file", "/nowhere", "--port", "0"], "--api-key-file /nowhere: cannot be read"),
        ]
        for arguments, expected in cases:
            done = run_serve(*arguments)
            assert done.returncode == 2, arguments
            assert expected in done.stderr
            assert done.stderr.count("\n") == 1
            assert done.stderr.startswith("plaudit-serve: error: ")
