"""Reward models on real vLLM servers on the CPU, behind a service. `make test-vllm` makes their environment."""

import shutil
import signal
import threading
from contextlib import contextmanager

import httpx2
import pytest
from replica_processes import WatchedNetwork, free_port
from safetensors.torch import load_file, save_file
from test_engines import wait_for
from vllm_process import SCORES, VLLMServer, python_of_vllm, vllm_server

from plaudit_client import RewardClient
from plaudit_export.checkpoints.rules import Options
from plaudit_export.checks.report import score_std
from plaudit_export.exporter import export_checkpoint
from plaudit_export.testing import tiny_causal_checkpoint, tiny_encoder_checkpoint
from plaudit_service.testing import running_service

pytestmark = pytest.mark.slow
# vLLM's attention on the CPU has no smaller heads.
SIZES = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 2}
DECODER = SIZES | {"num_key_value_heads": 2, "head_dim": 32}
# Where bits depend on batch mates: models of hidden size 64 never move.
MID = {"hidden_size": 512, "intermediate_size": 1024, "num_attention_heads": 8, "num_key_value_heads": 4,
       "head_dim": 64, "num_hidden_layers": 8}  # fmt: skip
CHECKPOINTS = {
    "llama": lambda path: tiny_causal_checkpoint(path, **DECODER),
    "llama of three heads": lambda path: tiny_causal_checkpoint(path, num_labels=3, **DECODER),
    "llama whose pad is eos": lambda path: tiny_causal_checkpoint(path, pad="eos", **DECODER),
    "qwen2": lambda path: tiny_causal_checkpoint(path, architecture="qwen2", **DECODER),
    "qwen3": lambda path: tiny_causal_checkpoint(path, architecture="qwen3", **DECODER),
    "mistral": lambda path: tiny_causal_checkpoint(path, architecture="mistral", **DECODER),
    "gemma2": lambda path: tiny_causal_checkpoint(
        path, architecture="gemma2", **DECODER | {"query_pre_attn_scalar": 32, "sliding_window": 128}
    ),
    "bert": lambda path: tiny_encoder_checkpoint(path, **SIZES),
    "llama of hidden size 512": lambda path: tiny_causal_checkpoint(path, **MID),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Checkpoint and bundle of a name, each made once."""
    python_of_vllm()
    folder, bundles = tmp_path_factory.mktemp("scores"), {}

    def make(name):
        if name not in bundles:
            path = CHECKPOINTS[name](folder / name.replace(" ", "-"))
            append_eos = True if "eos" in name else None
            options = Options(engine="vllm", append_eos=append_eos)
            bundles[name] = path, export_checkpoint(str(path), folder / f"{path.name}-bundle", options).bundle
        return bundles[name]

    return make


@contextmanager
def front(bundle, url, *flags, dtype="float32"):
    """A service before a server."""
    given = ["--runtime", "vllm", "--engine-url", url, "--engine-dtype", dtype, *flags]
    with running_service(bundle.path, flags=given) as service:
        yield service


def engine_of(service):
    (model,) = httpx2.get(f"{service.url}/info").json()["models"]
    (engine,) = model["engines"]
    return engine


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_checkpoint_is_served_in_float32_within_the_tolerance_of_its_manifest(made, tmp_path, name):
    checkpoint, bundle = made(name)
    assert bundle.manifest.tolerance == 1e-4
    with (
        vllm_server(checkpoint, tmp_path / "log", "--dtype", "float32", purpose=SCORES) as server,
        front(bundle, server.url) as service,
    ):
        wait_for(f"{service.url}/readyz", 200)
        engine = engine_of(service)
        assert engine["ready"], engine
        print(f"{name}: {engine['max_abs_diff']:.1e}")  # noqa: T201  a figure for the docs
        items = [dict(golden.item) for golden in bundle.golden]
        with RewardClient(service.url) as client:
            for golden, score in zip(bundle.golden, client.score(items, raw=True).floats, strict=True):
                assert abs(score - golden.score) <= 1e-4 * max(1, abs(golden.score))


def test_bfloat16_is_within_a_quarter_of_the_scores_deviation(made, tmp_path):
    checkpoint, bundle = made("llama of hidden size 512")
    with (
        vllm_server(checkpoint, tmp_path / "log", "--dtype", "bfloat16", purpose=SCORES) as server,
        front(bundle, server.url, dtype="bfloat16") as service,
    ):
        wait_for(f"{service.url}/readyz", 200)
        assert 1e-4 < engine_of(service)["max_abs_diff"] <= score_std(bundle.golden) / 4
        with front(bundle, server.url, dtype="float32") as strict:
            assert "does not give its reference scores" in engine_of(strict)["detail"]


@pytest.mark.parametrize("wrong", ["another checkpoint", "no head", "shifted", "wrong pooling"])
def test_a_server_that_scores_otherwise_is_not_ready(made, tmp_path, wrong):
    checkpoint, bundle = made("llama")
    flags = ["--dtype", "float32"]
    if wrong == "another checkpoint":
        checkpoint = tiny_causal_checkpoint(tmp_path / "another", seed=1, **DECODER)
    if wrong == "no head":
        checkpoint = shutil.copytree(checkpoint, tmp_path / "headless")
        weights = load_file(checkpoint / "model.safetensors")
        del weights["score.weight"]
        save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt"})
    if wrong == "shifted":
        flags += ["--pooler-config", '{"logit_mean": 1.0}']
    if wrong == "wrong pooling":
        flags += ["--pooler-config", '{"pooling_type": "MEAN"}']
    with (
        vllm_server(checkpoint, tmp_path / "log", *flags, purpose=SCORES) as server,
        front(bundle, server.url) as service,
    ):
        assert httpx2.get(f"{service.url}/readyz").status_code == 503
        assert httpx2.get(f"{service.url}/healthz").status_code == 200
        assert "does not give its reference scores" in engine_of(service)["detail"]


def test_the_nan_of_one_sequence_costs_no_other_its_score(made, tmp_path):
    checkpoint, bundle = made("llama")
    used = {token for golden in bundle.golden for token in golden.token_ids}
    poison = next(token for token in range(len(used) + 1) if token not in used)
    checkpoint = shutil.copytree(checkpoint, tmp_path / "poisoned")
    weights = load_file(checkpoint / "model.safetensors")
    weights["model.embed_tokens.weight"][poison] = float("nan")
    save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt"})
    items = [{"token_ids": list(golden.token_ids)} for golden in bundle.golden]
    with (
        vllm_server(checkpoint, tmp_path / "log", "--dtype", "float32", purpose=SCORES) as server,
        front(bundle, server.url) as service,
        RewardClient(service.url) as client,
    ):
        wait_for(f"{service.url}/readyz", 200)
        for _ in range(4):
            bad, *results = client.score([{"token_ids": [poison] * 9}, *items], raw=True)
            assert bad.status == "non_finite"
            for golden, result in zip(bundle.golden, results, strict=True):
                assert abs(result.score - golden.score) <= 1e-4 * max(1, abs(golden.score))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM], ids=lambda number: number.name)
def test_a_server_that_ends_or_stops_under_load_costs_a_client_that_retries_no_score(made, tmp_path, number):
    checkpoint, bundle = made("llama")
    port = free_port()
    server = VLLMServer(checkpoint, tmp_path / "log", "--dtype", "float32", port=port, purpose=SCORES)
    servers = [server]
    items = [dict(golden.item) for golden in bundle.golden] * 8
    struck = threading.Event()

    def strike(request):
        if request == 10:
            server.send(number)
            struck.set()

    def bring_back():
        assert struck.wait(120)
        wait_for(f"{service.url}/readyz", 503)
        if number == signal.SIGSTOP:
            server.send(signal.SIGCONT)
        else:
            server.process.wait(120)
            servers.append(VLLMServer(checkpoint, tmp_path / "log", "--dtype", "float32", port=port, purpose=SCORES))

    try:
        with front(bundle, server.url, "--engine-timeout-s", "10") as service:
            wait_for(f"{service.url}/readyz", 200)
            bringing = threading.Thread(target=bring_back)
            bringing.start()
            network = WatchedNetwork(strike)
            with RewardClient(service.url, max_items_per_request=8, timeout_s=600, transport=network) as client:
                scores = client.score(items, raw=True).floats
            bringing.join()
            for score, golden in zip(scores, list(bundle.golden) * 8, strict=True):
                assert abs(score - golden.score) <= 1e-4 * max(1, abs(golden.score))
    finally:
        for each in servers:
            if each.process.poll() is None:
                each.kill()
