import pytest

from plaudit_client import RewardClient
from plaudit_client.retry import Timing
from plaudit_client.testing import FakeService, FakeTransport, json_response
from plaudit_ppo.errors import ConfigError
from plaudit_ppo.scoring import remote as remote_module
from plaudit_ppo.scoring.combined import CombinedScorer
from plaudit_ppo.scoring.remote import RemoteScorer


@pytest.fixture
def remote(monkeypatch):
    """A RemoteScorer over a fake service; retries do not wait."""

    def make(service, address="http://a,http://b#small"):
        async def pass_over(delay_s):
            pass

        def client(urls, *, timeout_s, timing):
            assert urls == "http://a,http://b"
            return RewardClient(urls, timeout_s=timeout_s, timing=Timing(sleep=timing.sleep), transport=service)

        monkeypatch.setattr(remote_module, "RewardClient", client)
        monkeypatch.setattr(remote_module.asyncio, "sleep", pass_over)
        return RemoteScorer(address, timeout_s=5.0)

    return make


def test_an_address_names_replicas_and_a_model_and_retries_are_counted(remote):
    """Detail 26: scoring/retries."""
    service = FakeService(lambda item: 1.5, model="small")
    refused = iter([503, 429])

    def sometimes(request):
        status = next(refused, None) if request.path == "/score" else None
        return service.answer(request) if status is None else json_response({"detail": "busy"}, status)

    with remote(FakeTransport(sometimes)) as scorer:
        assert scorer.retries == 0
        assert scorer([{"text": "a"}]).floats == [1.5]
        assert scorer.retries == 2
        assert CombinedScorer([scorer, scorer]).retries == 4


def test_an_address_that_cannot_be_used_is_refused():
    with pytest.raises(ConfigError, match="'ftp://a'"):
        RemoteScorer("ftp://a", timeout_s=1.0)
