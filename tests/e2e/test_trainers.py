"""The trainers' own code against a real service: TRL as installed, the clients of others as their packages have them.

The others need a GPU stack to be installed, but the file that calls the reward model needs none, so it is taken out of
their wheel; where that cannot be downloaded, the test is skipped. slime is on no index: PLAUDIT_SLIME is a checkout.
"""

import asyncio
import importlib.util
import logging
import os
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from unittest.mock import MagicMock

import pytest

from plaudit_service.testing import score_by_hand

pytestmark = pytest.mark.slow

OPENRLHF = "openrlhf==0.11.2"
LLAMAFACTORY = "llamafactory==0.9.5"


@pytest.fixture
def load_alone(monkeypatch):
    """Imports one module of an unpacked package; its parent packages, and the modules given, are stubs."""

    def load(root, name, stubs=None):
        file = root / Path(*name.split("."))
        for place in range(1, name.count(".") + 1):
            parent = name.rsplit(".", place)[0]
            monkeypatch.setitem(sys.modules, parent, ModuleType(parent))
        for stub, module in (stubs or {}).items():
            monkeypatch.setitem(sys.modules, stub, module)
        path = file / "__init__.py" if file.is_dir() else file.with_suffix(".py")
        spec = importlib.util.spec_from_file_location(name, path)
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, module)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture
def openrlhf_agent(download, load_alone):
    logs = SimpleNamespace(init_logger=logging.getLogger)
    return load_alone(download(OPENRLHF), "openrlhf.utils.agent", {"openrlhf.utils.logging_utils": logs})


@pytest.fixture
def llamafactory_ppo(download, load_alone):
    packages = SimpleNamespace(is_requests_available=lambda: True)
    stubs = {"llamafactory.extras": MagicMock(), "llamafactory.extras.packages": packages}
    return load_alone(download(LLAMAFACTORY), "llamafactory.train.ppo.ppo_utils", stubs)


@pytest.fixture
def slime_rewards(load_alone, monkeypatch):
    if "PLAUDIT_SLIME" not in os.environ:
        pytest.skip("no checkout of slime; set PLAUDIT_SLIME")
    hub = "slime.rollout.rm_hub"
    rules = [f"{hub}.{name}" for name in ("deepscaler", "f1", "gpqa", "math_dapo_utils", "math_utils")]
    stubs = {name: MagicMock() for name in ("slime.utils", "slime.utils.misc", "slime.utils.types", *rules)}
    return load_alone(Path(os.environ["PLAUDIT_SLIME"]), hub, stubs)


@pytest.fixture
def without_waiting(monkeypatch):
    """Pauses of the trainers' clients end at once."""

    async def at_once(seconds, sleep=asyncio.sleep):
        await sleep(0)

    monkeypatch.setattr(asyncio, "sleep", at_once)


TEXTS = ["good fine", "bad", "awful good"]


@pytest.mark.parametrize("num_urls", [1, 2, 5])
def test_openrlhfs_own_client_gets_its_rewards_from_one_url_and_from_several(
    serve, tiny_bundle, openrlhf_agent, num_urls
):
    with serve(tiny_bundle(), flags=["--dialects", "openrlhf"]) as service:
        executor = openrlhf_agent.SingleTurnAgentExecutor([f"{service.url}/get_reward"] * num_urls)
        for texts in (TEXTS, TEXTS[:1], []):
            shards = asyncio.run(executor._fetch_rewards_via_http(texts, [""] * len(texts), [None] * len(texts)))
            assert [reward for shard in shards for reward in shard["rewards"]] == [*map(score_by_hand, texts)]


@pytest.mark.parametrize(("completion", "reward"), [("fine", [1.5]), ("crash", None)])
def test_an_openrlhf_rollout_has_its_reward_or_none_never_another_number(
    serve, tiny_bundle, openrlhf_agent, without_waiting, completion, reward
):
    class Engine:
        async def generate(self, *_, **__):
            return SimpleNamespace(
                outputs=[SimpleNamespace(token_ids=[completion], finish_reason="stop", logprobs=None)]
            )

    class Tokenizer:
        def __call__(self, text, **_):
            return {"input_ids": [SimpleNamespace(tolist=text.split)]}

        def decode(self, words, skip_special_tokens):
            return " ".join(words)

    with serve(tiny_bundle(), flags=["--dialects", "openrlhf"]) as service:
        executor = openrlhf_agent.SingleTurnAgentExecutor(f"{service.url}/get_reward")
        params = SimpleNamespace(max_tokens=1, logprobs=None)
        rollout = asyncio.run(executor.execute("good", None, params, 100, Tokenizer(), Engine()))
        assert (rollout["reward"], rollout["scores"]) == (reward, reward)


def test_llamafactorys_own_client_gets_its_rewards(serve, tiny_bundle, llamafactory_ppo):
    with serve(tiny_bundle(), flags=["--dialects", "llamafactory"]) as service:
        rewards = llamafactory_ppo.get_rewards_from_server(f"{service.url}/v1/score/evaluation", TEXTS)
        assert rewards.tolist() == [*map(score_by_hand, TEXTS)]


def test_a_text_without_a_score_stops_llamafactory_and_becomes_no_number(serve, tiny_bundle, llamafactory_ppo):
    with serve(tiny_bundle(), flags=["--dialects", "llamafactory"]) as service, pytest.raises(KeyError, match="scores"):
        llamafactory_ppo.get_rewards_from_server(f"{service.url}/v1/score/evaluation", [*TEXTS, "crash"])


def ask_slime(slime_rewards, url, prompt, response):
    async def ask():
        try:
            sample = SimpleNamespace(prompt=prompt, response=response, label=None)
            return await slime_rewards.remote_rm(SimpleNamespace(rm_url=url), sample)
        finally:
            await slime_rewards._get_shared_session().close()

    return asyncio.run(ask())


@pytest.mark.parametrize("prompt", ["good", [{"role": "user", "content": "good"}]])
def test_slimes_own_client_gets_its_reward(serve, tiny_bundle, slime_rewards, prompt):
    with serve(tiny_bundle(), flags=["--dialects", "slime"]) as service:
        assert ask_slime(slime_rewards, f"{service.url}/slime", prompt, " fine") == 1.5
        assert ask_slime(slime_rewards, f"{service.url}/slime?reward_key=score", prompt, " fine") == {"score": 1.5}


def test_a_rollout_without_a_score_is_an_error_in_slime(serve, tiny_bundle, slime_rewards, without_waiting):
    import aiohttp

    with (
        serve(tiny_bundle(), flags=["--dialects", "slime"]) as service,
        pytest.raises(aiohttp.ClientResponseError, match="422"),
    ):
        ask_slime(slime_rewards, f"{service.url}/slime", "good", " crash")


@pytest.fixture(scope="module")
def chat_checkpoint(tmp_path_factory):
    """A tiny random policy with a chat template."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    from plaudit_export.testing import tiny_causal_checkpoint

    folder = tmp_path_factory.mktemp("policy")
    source = tiny_causal_checkpoint(folder / "rm")
    config = AutoConfig.from_pretrained(source)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder / "policy")
    AutoTokenizer.from_pretrained(source).save_pretrained(folder / "policy")
    return folder / "policy"


@pytest.mark.parametrize("trainer", ["GRPO", "RLOO"])
@pytest.mark.filterwarnings("default")  # torch's and TRL's own
def test_trl_trains_a_few_steps_on_scores_of_a_real_service(serve, causal_bundle, chat_checkpoint, tmp_path, trainer):
    import trl
    from datasets import Dataset

    from plaudit_client import RewardClient
    from plaudit_client.adapters.trl import reward_function

    chats = [[{"role": "user", "content": word}] for word in ("hello", "add left right", "numbers", "text")]
    with serve(causal_bundle) as service, RewardClient(service.url) as client:
        reward = reward_function(client=client)
        config = getattr(trl, f"{trainer}Config")(
            output_dir=str(tmp_path),
            max_steps=2,
            per_device_train_batch_size=4,
            num_generations=2,
            logging_steps=1,
            max_completion_length=8,
            report_to=[],
            use_cpu=True,
            bf16=False,
            save_strategy="no",
            disable_tqdm=True,
        )
        run = getattr(trl, f"{trainer}Trainer")(
            model=str(chat_checkpoint),
            reward_funcs=[reward],
            args=config,
            train_dataset=Dataset.from_dict({"prompt": chats}),
        )
        run.train()
        logged = [line for line in run.state.log_history if "rewards/plaudit/mean" in line]
        assert len(logged) == 2
        assert all(line["scoring/failed_fraction"] == 0 for line in logged)
        assert any(line["rewards/plaudit/std"] > 0 for line in logged)
