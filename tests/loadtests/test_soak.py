import asyncio
import json

import pytest
import servers
import soak


def test_growth_compares_the_end_with_what_follows_warm_up():
    sizes = [1.0, 50.0] + [100.0] + [105.0] * 6 + [110.0]  # warm-up is the first fifth, a tenth is one sample
    assert soak.growth(sizes, 0.2) == pytest.approx(0.1)


def test_one_outlier_is_no_growth():
    assert soak.growth([100] * 99 + [500], 0.2) == 0


def test_requests_are_of_all_shapes_and_the_same_for_a_seed():
    requests = list(soak.mixed_requests("http://x:1", 1000, seed=1))
    bodies = [request.partition(b"\r\n\r\n")[2] for request, _ in requests]
    documents = [json.loads(body) for body in bodies if body.endswith(b"}")]
    assert 5 < 1000 - len(documents) < 50  # cut in the middle
    assert 20 < sum(leaves for _, leaves in requests) < 100
    for key in ("model", "truncation", "unknown", "raw"):
        assert any(key in document for document in documents)
    for key in ("text", "completions", "token_ids", "completion"):
        assert any(key in document["items"][0] for document in documents)
    assert requests == list(soak.mixed_requests("http://x:1", 1000, seed=1))


def test_a_short_soak_of_a_real_service_has_no_server_error(causal_bundle):
    with servers.service(causal_bundle) as server:
        soaked = asyncio.run(soak.soak(server, 300, connections=8))
    assert soaked.outcomes.total() == 300
    assert soaked.num_server_errors == 0
    assert {"200", "400", "404", "422"} <= set(soaked.outcomes)
    assert [number for number, _ in soaked.samples] == [*range(300), 300]
    assert "growth after warm-up" in soak.describe(soaked)
    assert len(soaked.scored_s) == soaked.outcomes["200"]


def test_a_paced_soak_lasts_until_its_last_request_is_due(causal_bundle):
    due_s = [0.001 * number for number in range(100)]
    with servers.service(causal_bundle) as server:
        soaked = asyncio.run(soak.soak(server, 100, connections=8, due_s=due_s))
        assert server.metric("plaudit_requests_total") >= 100
    assert soaked.outcomes.total() == 100
    assert soaked.lasted_s >= due_s[-1]
    assert soaked.cpu_s > 0
    assert "p99" in soak.describe(soaked)


def test_a_5xx_is_a_server_error_and_a_4xx_is_not():
    assert (
        soak.Soaked(outcomes=soak.Counter({"200": 5, "422": 2, "500": 1, "503": 2, "left": 3})).num_server_errors == 3
    )
