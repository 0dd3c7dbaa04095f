"""verl's own code against a real service: its config, its loaders and its reward workers in Ray, with the overrides of
docs/trainers/verl.md. Runs where verl is installed: `make test-all`.
"""

import importlib.util
import json
import os
import re
import secrets
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from plaudit_service import Scorer

if importlib.util.find_spec("verl") is None:
    pytest.skip("verl is not installed", allow_module_level=True)
pytestmark = pytest.mark.slow

DOC = (Path(__file__).parents[2] / "docs" / "trainers" / "verl.md").read_text()
MANAGER, FUNCTION = (
    re.findall(r"\S+=\S+", block)
    for block in re.findall(r"```bash\n(.*?)```", DOC, flags=re.DOTALL)
    if "reward.reward_manager" in block or "reward.custom_reward_function" in block
)
ROLLOUTS = [("good", "fine"), ("bad bad", "awful good good"), ("fine", "bad")]
SCORES = [1.5, -2.25, -0.5]  # the hand-made bundle's template adds the roles, which are words without a value


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    """A policy with another tokenizer and template than the hand-made reward model."""
    from plaudit_export.testing import tiny_causal_checkpoint

    return tiny_causal_checkpoint(tmp_path_factory.mktemp("policy") / "policy")


@pytest.fixture
def run_verl(tmp_path, policy):
    """Gives what verl's reward loop makes of rollouts, or raises with what it printed."""

    def run(url, overrides, rollouts=ROLLOUTS, folder=tmp_path):
        overrides = [override.replace("http://rm:8000", url) for override in overrides]
        common = ["ray_kwargs.ray_init.num_cpus=4", "reward.num_workers=2"]
        auth = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        script, result = Path(__file__).with_name("verl_rewards.py"), tmp_path / "result.json"
        command = [sys.executable, script, policy, json.dumps(rollouts), result, *overrides, *common]
        # A folder of its own, with a short path because sockets lie in it: in the common one, Ray looks up the cluster
        # that somebody on this machine has started last, and joins it.
        with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as ray_folder:
            ray = {"RAY_TMPDIR": ray_folder, "RAY_ADDRESS": "", "RAY_USAGE_STATS_ENABLED": "0"}
            env = {**os.environ, **auth, **ray, "HF_HUB_OFFLINE": "1"}
            done = subprocess.run(command, env=env, cwd=folder, capture_output=True, text=True, timeout=300)
        if done.returncode:
            raise RuntimeError(done.stdout + done.stderr)
        return json.loads(result.read_text())

    return run


def check_rewards(rows, scores):
    """Every completion has its score at its last token and nothing before."""
    for row, score in zip(rows, scores, strict=True):
        assert [reward for reward in row if reward] == [score]


def test_verls_reward_loop_gives_every_rollout_its_score_through_the_manager(serve, tiny_bundle, run_verl):
    with serve(tiny_bundle()) as service:
        scored = run_verl(service.url, MANAGER)
    check_rewards(scored["rewards"], SCORES)
    assert scored["extra"] == {"num_tokens": [4, 7, 4], "truncated": [False] * 3}


def test_verls_reward_loop_gives_every_rollout_its_score_through_the_function(serve, tiny_bundle, run_verl):
    with serve(tiny_bundle()) as service:
        scored = run_verl(service.url, FUNCTION)
    check_rewards(scored["rewards"], SCORES)
    assert scored["extra"]["score"] == SCORES


def test_a_rollout_without_a_score_stops_verl_and_becomes_no_number(serve, tiny_bundle, run_verl, tmp_path):
    with serve(tiny_bundle()) as service, pytest.raises(RuntimeError, match="a rollout has no score: failed"):
        run_verl(service.url, MANAGER, [*ROLLOUTS, ("good", "crash")])
    assert not (tmp_path / "result.json").exists()


def test_verls_own_client_of_reward_models_gets_the_score_of_the_chat(serve, causal_bundle, run_verl):
    # verl sends the path that it is given, and the service knows the checkpoint by the last part of its path.
    checkpoint = json.loads((causal_bundle / "bundle.json").read_text())["source"]["id"]
    with serve(causal_bundle, flags=["--dialects", "vllm"]) as service:
        overrides = [
            "reward.reward_model.enable=True",
            "reward.reward_model.rollout.name=vllm",
            f"reward.reward_model.model_path={checkpoint}",
            f"+reward.reward_model.rollout.engine_kwargs.plaudit={service.url.removeprefix('http://')}",
        ]
        scores = run_verl(service.url, overrides, folder=causal_bundle.parent)
    chats = [{"messages": [{"role": "user", "content": prompt}], "completions": [text]} for prompt, text in ROLLOUTS]
    assert scores == [result.score for result in Scorer(causal_bundle).score(chats)]
