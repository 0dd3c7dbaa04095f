"""A service before servers that speak vLLM's routes: what they get wrong never leaves, what they lose is 503."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from dataclasses import dataclass

import httpx2
import pytest
from fake_pooling import CRASH, KEY, LOST, WRONG, FakePooling, fake_pooling
from running_app import OpenPost, until

from plaudit_service.bundles.bundle import load_bundle
from plaudit_service.http.app import build_app
from plaudit_service.http.asgi import App
from plaudit_service.serving import fleet_watch
from plaudit_service.serving.service import Service
from plaudit_service.settings import Settings
from plaudit_service.testing import VALUES, WORD_IDS, score_by_hand

TABLE = [value or 0.0 for value in VALUES.values()]
TABLE[WORD_IDS["infinite"]] = float("nan")


@dataclass
class Front:
    """A service whose first check is over, and the servers behind it."""

    app: App
    service: Service
    client: httpx2.AsyncClient
    engines: list[FakePooling]

    def value(self, name, **labels):
        return self.service.metrics.registry.get_sample_value(f"plaudit_{name}", labels)

    def losses(self, engine, reason):
        labels = {"model": "tiny", "engine": self.engines[engine].url, "reason": reason}
        return self.value("remote_losses_total", **labels) or 0

    async def score(self, *texts, **fields):
        return await self.client.post("/score", json={"items": [{"text": text} for text in texts], **fields})

    async def scores(self, *texts):
        answer = await self.score(*texts)
        assert answer.status_code == 200, answer.text
        return [result["score"] for result in answer.json()["results"]]

    async def status(self, path):
        return (await self.client.get(path)).status_code

    async def until_ready(self):
        await until(lambda: self.service.not_ready is None)

    async def until_lost(self):
        await until(lambda: self.service.not_ready is not None)


@pytest.fixture
def run(tiny_bundle, monkeypatch):
    """Runs `scenario(front)`; unless told otherwise, the watch makes no pauses worth the name."""
    monkeypatch.setattr(fleet_watch, "_FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(fleet_watch, "_MAX_PAUSE_S", 0.01)

    def run(
        scenario: Callable[[Front], Awaitable[None]],
        *,
        count=1,
        faults=(),
        settings=None,
        certificate=None,
        poll_s=0.01,
        **options,
    ) -> None:
        monkeypatch.setattr(fleet_watch, "_POLL_S", poll_s)
        with ExitStack() as stack:
            bundle = load_bundle(tiny_bundle(engine="vllm", **options))
            known = {"num_heads": len(bundle.scoring.heads), "certificate": certificate}
            engines = [stack.enter_context(fake_pooling(TABLE, **known)) for _ in range(count)]
            for engine, fault in zip(engines, faults, strict=False):
                engine.fault = fault
            given = {"engine_url": [engine.url for engine in engines], "engine_dtype": "float32"} | (settings or {})
            service = Service([bundle], Settings(runtime="vllm", **given))
            asyncio.run(_main(service, engines, scenario))

    return run


async def _main(service, engines, scenario):
    service.start()
    app = build_app(service, ())
    try:
        async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app), base_url="http://plaudit") as client:
            await service.wait_until_checked()
            await scenario(Front(app, service, client, engines))
    finally:
        await service.stop()


def test_texts_are_scored_by_the_engine_in_lists_that_hold_what_begins_alike(run):
    async def scenario(front):
        del front.engines[0].ids[:]
        texts = [f"{word} {'fine ' * number}good" for number in range(10) for word in ("good", "bad", "awful", "fine")]
        assert await front.scores(*texts) == [score_by_hand(text) for text in texts]
        assert sorted(map(len, front.engines[0].ids)) == [8, 32]
        firsts = [ids[1] for ids in front.engines[0].ids[0]]
        assert firsts == sorted(firsts)
        assert front.value("padding_tokens_total") == 0

    run(scenario)


def test_several_heads_come_back_raw_and_are_weighed_here(run):
    async def scenario(front):
        (result,) = (await front.score("good fine")).json()["results"]
        assert result["heads"] == {"x": 1.5, "y": 3.0}
        assert result["score"] == 0.5 * 1.5 - 3.0

    run(scenario, heads={"x": 0.5, "y": -1.0})


def test_info_says_which_engine_it_is_and_how_far_it_is_from_the_references(run):
    async def scenario(front):
        (model,) = (await front.client.get("/info")).json()["models"]
        (engine,) = model["engines"]
        assert engine == {
            "url": front.engines[0].url, "ready": True, "detail": None, "model": "rm", "version": "0.32.0",
            "max_abs_diff": 0.0,
        }  # fmt: skip
        assert (model["engine"], model["runtime"]) == ("vllm-float32", "vllm")
        assert model["parity"]["batch_invariant"] is False  # equal bits today are no promise

    run(scenario)


@pytest.mark.parametrize("fault", WRONG)
def test_an_engine_that_gives_wrong_scores_is_not_ready(run, fault):
    async def scenario(front):
        assert await front.status("/readyz") == 503
        assert await front.status("/healthz") == 200
        answer = await front.score("good")
        assert (answer.status_code, answer.json()["type"]) == (503, "urn:plaudit:unavailable")
        assert answer.headers["Retry-After"]
        assert front.losses(0, "wrong") >= 1
        front.engines[0].fault = None
        await front.until_ready()
        assert await front.scores("good") == [1.0]

    run(scenario, faults=[fault])


@pytest.mark.parametrize("fault", LOST)
def test_an_engine_that_fails_under_a_request_gives_503_until_it_has_passed_the_check_again(run, fault):
    async def scenario(front):
        front.engines[0].fault = fault
        if fault == "sick":  # it still answers, and says that it will not for long
            await front.until_lost()
        answer = await front.score("good")
        assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
        await front.until_lost()
        assert await front.status("/readyz") == 503
        assert await front.status("/healthz") == 200
        await until(lambda: front.value("remote_ready", model="tiny", engine=front.engines[0].url) == 0)
        assert front.losses(0, LOST[fault]) >= 1
        front.engines[0].fault = None
        front.engines[0].release()
        await front.until_ready()
        assert await front.scores("good") == [1.0]

    run(scenario, settings={"engine_timeout_s": 0.5 if fault in {"hang", "drip"} else 60})


def test_an_engine_that_was_started_anew_has_to_pass_the_check_again(run):
    async def scenario(front):
        front.engines[0].fault, front.engines[0].started = "another checkpoint", 2000.0
        await front.until_lost()
        assert await front.status("/readyz") == 503
        await until(lambda: "does not give its reference scores" in (front.service.not_ready or ""))

    run(scenario)


def test_no_score_of_a_process_that_was_started_anew_leaves_before_a_probe_has_seen_it(run):
    async def scenario(front):
        assert await front.scores("good") == [1.0]
        (before,) = front.engines
        before.close()
        with fake_pooling(TABLE, port=before.port) as after:
            after.fault, after.started = "another checkpoint", 2000.0
            answer = await front.score("good")
            assert (answer.status_code, answer.json()["type"]) == (503, "urn:plaudit:unavailable")
            await until(lambda: front.losses(0, "restarted") == 1)

    run(scenario, poll_s=3600)


def test_an_engine_whose_weights_change_as_it_runs_is_noticed_by_a_golden_text(run):
    async def scenario(front):
        front.engines[0].fault = "another checkpoint"
        await until(lambda: "does not give its reference scores" in (front.service.not_ready or ""))
        assert front.losses(0, "wrong") >= 1

    run(scenario, settings={"engine_canary_s": 0.0})


def test_scores_that_are_known_are_forgotten_once_an_engine_turns_out_to_give_wrong_ones(run):
    async def scenario(front):
        for hits in (0, 1):
            assert await front.scores("good") == [1.0]
            assert front.value("score_cache_hits_total") == hits
        front.engines[0].fault = "another checkpoint"
        await front.until_lost()
        front.engines[0].fault = None
        await front.until_ready()
        assert await front.scores("good") == [1.0]
        assert front.value("score_cache_hits_total") == 1

    run(scenario, settings={"engine_canary_s": 0.0, "score_cache_size": 9})


def test_only_the_sequence_that_the_engine_refuses_fails(run):
    async def scenario(front):
        assert WORD_IDS["crash"] == CRASH
        results = (await front.score("good", "crash", "bad", "fine")).json()["results"]
        assert [result["status"] for result in results] == ["ok", "failed", "ok", "ok"]
        assert results[1]["detail"] == "the engine refused the sequence"
        assert await front.status("/readyz") == 200

    run(scenario)


def test_nan_that_a_neighbour_left_behind_is_asked_for_alone_and_without_kept_prefixes(run):
    async def scenario(front):
        front.engines[0].fault = "poisoned"
        assert await front.scores("good", "bad") == [1.0, -1.0]
        (result,) = (await front.score("infinite good")).json()["results"]
        assert result["status"] == "non_finite"

    run(scenario)


def test_what_one_engine_loses_another_answers(run):
    async def scenario(front):
        await until(lambda: front.value("remote_ready", model="tiny", engine=front.engines[1].url) == 1)
        front.engines[0].fault = "500"
        for _ in range(4):
            assert await front.scores("good", "bad") == [1.0, -1.0]
        assert await front.status("/readyz") == 200
        front.engines[1].close()
        assert (await front.score("good")).status_code == 503

    run(scenario, count=2)


def test_an_engine_with_shorter_texts_than_the_bundles_or_a_key_that_it_was_not_given_is_told(run, tmp_path):
    async def scenario(front):
        assert "/v1/models answers 401; set --engine-key-file" in front.service.not_ready

    run(scenario, faults=["wrong key"])

    async def longer(front):
        assert "its --max-model-len is 64, and the bundle's max_tokens 65; raise it" in front.service.not_ready

    run(longer, max_tokens=65)

    async def with_key(front):
        assert await front.scores("good") == [1.0]

    (tmp_path / "key").write_text(f"{KEY}\n")
    run(with_key, faults=["wrong key"], settings={"engine_key_file": str(tmp_path / "key")})


def test_a_certificate_of_its_own_is_trusted_where_it_is_given_and_not_otherwise(run, certificate):
    async def trusting(front):
        assert await front.scores("good") == [1.0]

    run(trusting, certificate=certificate, settings={"engine_ca_file": str(certificate / "certificate.pem")})

    async def doubting(front):
        assert front.service.not_ready == (
            "engine 1 of 1: no answer to /health (ClientConnectorCertificateError); set --engine-ca-file"
        )

    run(doubting, certificate=certificate)


def test_clients_are_not_told_where_engines_are(run):
    async def scenario(front):
        for path in ("/readyz", "/healthz"):
            assert "127.0.0.1" not in (await front.client.get(path)).text
        answer = await front.score("good")
        assert (answer.status_code, "127.0.0.1" in answer.text) == (503, False)

    run(scenario, count=2, faults=["500", "sigmoid"])


def test_one_wrong_engine_of_two_leaves_the_models_parity_as_it_is(run):
    async def scenario(front):
        await until(lambda: front.losses(1, "wrong") > 1)
        assert front.value("parity_ok", model="tiny") == 1
        (model,) = front.service.info()["models"]
        assert (model["parity"]["ok"], [engine["ready"] for engine in model["engines"]]) == (True, [True, False])

    run(scenario, count=2, faults=[None, "sigmoid"])


def test_a_call_that_nobody_waits_for_any_more_is_cut(run):
    async def scenario(front):
        engine = front.engines[0]
        engine.hold()
        leaving = OpenPost(front.app, "/score", {"items": [{"text": "good"}, {"text": "bad"}]})
        await until(lambda: engine.in_flight == 1)
        await leaving.leave()
        await until(lambda: front.value("running_sequences") == 0)
        assert front.value("cancelled_total") == 2
        engine.go_on()
        assert await front.scores("good") == [1.0]

    run(scenario)
