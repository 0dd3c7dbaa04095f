"""The trainers' own code against a real service: TRL as installed, the clients of others as their packages have them.

OpenRLHF needs a GPU stack to be installed, but the file that calls the reward model needs none, so it is taken out of
the wheel; where that cannot be downloaded, the test is skipped.
"""

import asyncio
import importlib.util
import logging
import subprocess
import sys
import zipfile
from types import ModuleType, SimpleNamespace

import pytest

from plaudit_service.testing import score_by_hand

pytestmark = pytest.mark.slow

OPENRLHF = "openrlhf==0.11.2"


@pytest.fixture
def load_from_wheel(tmp_path):
    """Imports one file of a package that is downloaded and not installed: `load_from_wheel("a==1", "a/b.py")`."""

    def load(requirement, file):
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
        done = subprocess.run([*command, "--dest", tmp_path, requirement], capture_output=True, text=True, timeout=300)
        if done.returncode:
            pytest.skip(f"{requirement} cannot be downloaded: {done.stderr.strip().splitlines()[-1]}")
        (wheel,) = tmp_path.glob(f"{requirement.split('==')[0]}-*.whl")
        with zipfile.ZipFile(wheel) as archive:
            (name,) = [name for name in archive.namelist() if name.endswith(file)]
            path = tmp_path / "from_wheel.py"
            path.write_bytes(archive.read(name))
        spec = importlib.util.spec_from_file_location("from_wheel", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture
def openrlhf_agent(load_from_wheel, monkeypatch):
    for name in ("openrlhf", "openrlhf.utils"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    logs = SimpleNamespace(init_logger=logging.getLogger)
    monkeypatch.setitem(sys.modules, "openrlhf.utils.logging_utils", logs)
    return load_from_wheel(OPENRLHF, "openrlhf/utils/agent.py")


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
    serve, tiny_bundle, openrlhf_agent, monkeypatch, completion, reward
):
    async def at_once(seconds, sleep=asyncio.sleep):
        await sleep(0)

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

    monkeypatch.setattr(openrlhf_agent.asyncio, "sleep", at_once)
    with serve(tiny_bundle(), flags=["--dialects", "openrlhf"]) as service:
        executor = openrlhf_agent.SingleTurnAgentExecutor(f"{service.url}/get_reward")
        params = SimpleNamespace(max_tokens=1, logprobs=None)
        rollout = asyncio.run(executor.execute("good", None, params, 100, Tokenizer(), Engine()))
        assert (rollout["reward"], rollout["scores"]) == (reward, reward)


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
