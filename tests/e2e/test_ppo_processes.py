"""PPO in two processes that speak gloo: the update of one process, and a whole run."""

import json
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from fake_vllm import fake_engines
from ppo_runs import evaluations, figures, weights, write_config, write_policy
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from plaudit_ppo import PPOConfig, load_policy
from plaudit_ppo.runs.locks import locked
from plaudit_ppo.runs.log import read_log
from plaudit_service.testing import running_service, write_tiny_bundle

pytestmark = pytest.mark.slow

TORCHRUN = ["torch.distributed.run", "--standalone", "--nproc-per-node"]
EXAMPLES = Path(__file__).parents[2] / "deploy" / "deepspeed"
DEEPSPEED = pytest.mark.skipif(find_spec("deepspeed") is None, reason="deepspeed is not installed")
ACCELERATE = ["accelerate.commands.launch", "--multi_gpu", "--num_processes"]
SCRIPT = Path(__file__).with_name("ppo_shared_update.py")
PUBLISH = Path(__file__).with_name("ppo_publish.py")


def run(processes, *arguments, launcher=TORCHRUN):
    """Runs a script, or `-m` and a module, in so many processes."""
    command = [sys.executable] if processes == 1 else [sys.executable, "-m", *launcher, str(processes)]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "DS_ACCELERATOR": "cpu"}
    env.pop("PLAUDIT_URL", None)
    return subprocess.run([*command, *map(str, arguments)], env=env, capture_output=True, text=True, timeout=240)


def shared_update(tmp_path, name, processes, case, **settings):
    """The metrics of an update on given rollouts, and all weights after it."""
    done = run(processes, SCRIPT, tmp_path / "policy", tmp_path / name, case, json.dumps(settings))
    assert done.returncode == 0, done.stderr
    metrics = json.loads((tmp_path / f"{name}.json").read_text())
    assert metrics.pop("processes") == processes
    return metrics, load_file(tmp_path / f"{name}.safetensors")


def deepspeed(*names):
    return [pytest.param(name, marks=DEEPSPEED, id=f"deepspeed-{name}") for name in names]


def sharding(tmp_path, name):
    """The settings of a run: "none", "fsdp", ZeRO's stage "1", or one of the examples for DeepSpeed."""
    if name in ("none", "fsdp"):
        return {"sharding": name}
    path = EXAMPLES / f"zero-{name}.json"
    if name == "1":
        path = tmp_path / "zero-1.json"
        path.write_text('{"zero_optimization": {"stage": 1}}')
    return {"sharding": "deepspeed", "deepspeed_config": str(path)}


def assert_same(one, other):
    assert other[0] == pytest.approx(one[0], rel=1e-5, abs=1e-6)
    assert other[1].keys() == one[1].keys()
    for name, tensor in one[1].items():
        width = min(tensor.shape[-1], other[1][name].shape[-1])
        assert torch.allclose(tensor[..., :width], other[1][name][..., :width], atol=1e-6), name


@pytest.mark.parametrize("case", ["some failed", "one process without a score"])
def test_two_processes_make_the_update_of_one_on_the_same_rollouts(tmp_path, case):
    """Details 16, 18 and 25: statistics, losses, gradients and weights are over all processes, with DDP and FSDP."""
    write_policy(tmp_path / "policy")
    alone = shared_update(tmp_path, "alone", 1, case)
    assert alone[0]["objective/kl"] != pytest.approx(0, abs=1e-2)
    before = load_file(tmp_path / "policy" / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    assert (alone[1][f"policy.{name}"] - before[name]).abs().max() > 1e-3  # there is something to be equal in
    assert_same(alone, shared_update(tmp_path, "ddp", 2, case))
    assert_same(alone, shared_update(tmp_path, "fsdp", 2, case, sharding="fsdp"))


@pytest.mark.parametrize("name", deepspeed("1", "2", "3", "3-offload"))
def test_two_processes_under_deepspeed_make_the_update_of_one(tmp_path, name):
    """Details 16, 18, 21 and 25: the gradients of policy and critic are clipped apart, as everywhere."""
    write_policy(tmp_path / "policy")
    epsilon = {"adam_epsilon": 1e-2}  # with a smaller one, AdamW makes steps of the rounding of gradients near 0
    for case in ("one process without a score", "adamw"):
        alone = shared_update(tmp_path, "alone", 1, case, **epsilon)
        assert_same(alone, shared_update(tmp_path, "zero", 2, case, **epsilon, **sharding(tmp_path, name)))


def test_two_processes_train_an_adapter_and_a_head_on_the_policys_network_as_one_does(tmp_path):
    """Detail 19: LoRA, the value loss through the adapter, layers checkpointed."""
    write_policy(tmp_path / "policy")
    settings = {"lora_rank": 4, "critic_trunk": "policy", "gradient_checkpointing": True}
    alone = shared_update(tmp_path, "alone", 1, "some failed", **settings)
    moved = [tensor.abs().max() for name, tensor in alone[1].items() if "lora_B" in name]
    assert min(moved) > 1e-5  # at first they are 0
    assert_same(alone, shared_update(tmp_path, "ddp", 2, "some failed", **settings))


@pytest.mark.parametrize("name", ["none", "fsdp", *deepspeed("2", "3")])
def test_two_processes_compute_logits_in_chunks_as_one_does_whole(tmp_path, name):
    write_policy(tmp_path / "policy")
    alone = shared_update(tmp_path, "alone", 1, "some failed")
    chunks = {"logits_chunk_tokens": 7, **sharding(tmp_path, name)}
    assert_same(alone, shared_update(tmp_path, "chunks", 2, "some failed", **chunks))


@pytest.mark.parametrize("name", ["fsdp", *deepspeed("3")])
def test_two_processes_that_share_a_network_train_its_adapter_as_one_does(tmp_path, name):
    """FSDP and ZeRO's stage 3 with LoRA: most of a layer's weights are frozen."""
    write_policy(tmp_path / "policy")
    settings = {"lora_rank": 4, "gradient_checkpointing": True}
    alone = shared_update(tmp_path, "alone", 1, "some failed", **settings)
    shared = shared_update(tmp_path, "shared", 2, "some failed", **settings, **sharding(tmp_path, name))
    assert_same(alone, shared)


@pytest.mark.parametrize("name", ["none", "fsdp", *deepspeed("1", "2", "3", "3-offload")])
def test_a_gradient_that_is_no_number_changes_no_weight(tmp_path, name):
    """Also where DeepSpeed clips and steps at once; in one process alone, and with no limit of the norm."""
    write_policy(tmp_path / "policy")
    settings = {**sharding(tmp_path, name), "max_grad_norm": 0.0}
    metrics, weights = shared_update(tmp_path, "shared", 2, "a gradient that is no number", **settings)
    assert metrics["error"].startswith("the gradient of the policy is not finite, and it made no step; ")
    before = load_file(tmp_path / "policy" / "model.safetensors")
    for name, tensor in before.items():
        assert torch.equal(weights[f"policy.{name}"], tensor), name


@pytest.fixture
def train(tmp_path):
    """Runs `plaudit-ppo train` in so many processes, with small settings; returns what it prints."""
    write_policy(tmp_path / "policy")
    write_tiny_bundle(tmp_path / "bundle")
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "so"}\n{"prompt": "very very"}\n{"prompt": "so very good"}\n')
    with running_service(tmp_path / "bundle") as service:

        def train(name, iterations, *flags, processes=2, **settings):
            file = write_config(
                tmp_path / f"{name}.toml", policy=tmp_path / "policy", prompts=tmp_path / "prompts.jsonl",
                scorer_urls=(service.url,), output=tmp_path / name, iterations=iterations, rollout_batch_size=12,
                rollout_micro_batch_size=4, max_completion_tokens=8, num_minibatches=2, learning_rate=3e-3,
                lr_schedule="constant", temperature=1.0, missing_eos="off", kl_controller="adaptive", **settings,
            )  # fmt: skip
            done = run(processes, "-m", "plaudit_ppo", "train", "--config", file, *flags)
            if done.returncode:
                raise RuntimeError(done.stderr)
            return done.stdout

        yield train


def test_a_run_in_two_processes_is_reproducible_and_can_be_resumed(train, tmp_path):
    """Details 22 and 38: and the log is about all rollouts; the files are written once."""
    (tmp_path / "held-out.jsonl").write_text('{"prompt": "good"}\n{"prompt": "bad very"}\n{"prompt": "fine so"}\n')
    held_out = {"eval_prompts": tmp_path / "held-out.jsonl", "eval_every": 2}
    out = train("whole", 6, **held_out)
    train("again", 6, **held_out)
    train("parts", 4, **held_out)
    train("parts", 6, "--resume", tmp_path / "parts", **held_out)
    train("alone", 1, processes=1, **held_out)
    assert out.count("iterations") == 1
    assert out.startswith("6 iterations, 72 rollouts in ")
    log = read_log(tmp_path / "whole" / "log.jsonl")
    assert [line["episode"] for line in log] == [12, 24, 36, 48, 60, 72]
    assert all(line["scoring/retries"] == 0 for line in log)
    for other in ("again", "parts"):
        assert weights(tmp_path / other) == weights(tmp_path / "whole")
        assert figures(tmp_path / other) == figures(tmp_path / "whole")
        assert evaluations(tmp_path / other) == evaluations(tmp_path / "whole")
    starts = [read_log(tmp_path / name / "evaluations.jsonl")[0] for name in ("alone", "whole")]
    assert starts[0]["scores"] == starts[1]["scores"]  # three prompts of two processes, the likeliest tokens


def test_both_processes_end_with_one_line_where_another_run_has_the_directory(train, tmp_path):
    with locked(tmp_path / "taken"), pytest.raises(RuntimeError) as caught:
        train("taken", 1)
    assert str(caught.value).count("is in use by another run (process") == 1
    assert "exitcode  : 2 " in str(caught.value)
    assert "exitcode  : 1 " not in str(caught.value)  # of a stack trace


def sharded_run(train, tmp_path, **settings):
    """A run, and the same in two parts, of which one process that holds all can go on with the first too."""
    steps = PPOConfig().epochs * 2  # minibatches; of an iteration
    train("whole", 4, **settings)
    train("parts", 2, **settings)
    shutil.copytree(tmp_path / "parts", tmp_path / "alone")
    train("parts", 4, "--resume", tmp_path / "parts", **settings)
    assert weights(tmp_path / "parts") == weights(tmp_path / "whole")
    assert figures(tmp_path / "parts") == figures(tmp_path / "whole")
    assert figures(tmp_path / "whole")[3]["objective/kl"] > 1e-3
    train("alone", 3, "--resume", tmp_path / "alone", processes=1, **settings)
    optimizer = load_file(tmp_path / "alone" / "checkpoints" / "iteration-000003" / "optimizer.safetensors")
    assert {int(tensor) for name, tensor in optimizer.items() if name.endswith(".step")} == {3 * steps}
    policy = AutoModelForCausalLM.from_pretrained(tmp_path / "whole" / "policy")
    assert type(policy).__name__ == "LlamaForCausalLM"


@pytest.mark.parametrize("lora_rank", [0, 4])
def test_a_run_with_fsdp_goes_on_in_the_same_bits_and_its_checkpoint_is_one_as_any(train, tmp_path, lora_rank):
    """Detail 22: with layers checkpointed."""
    sharded_run(train, tmp_path, sharding="fsdp", gradient_checkpointing=True, lora_rank=lora_rank)


@pytest.mark.parametrize("lora_rank", [0, 4])
@pytest.mark.parametrize("name", ["fsdp", *deepspeed("2", "3", "3-offload")])
def test_weights_that_travel_in_bfloat16_have_masters_in_float32(train, tmp_path, name, lora_rank):
    """Gathered in bfloat16, frozen ones kept in it; checkpoints hold float32 and go on in the same bits."""
    halved = {"precision": "bfloat16", "gathered_precision": "bfloat16", "frozen_precision": "bfloat16"}
    sharded_run(train, tmp_path, **sharding(tmp_path, name), lora_rank=lora_rank, logits_chunk_tokens=16, **halved)
    policy = load_file(tmp_path / "whole" / "policy" / "model.safetensors")
    assert {tensor.dtype for tensor in policy.values()} == {torch.float32}
    rounded = [torch.equal(tensor, tensor.bfloat16().float()) for tensor in policy.values()]
    assert not all(rounded)


@DEEPSPEED
@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("1", {}),
        ("2", {"precision": "bfloat16"}),
        ("3", {"gradient_checkpointing": True}),
        ("3-offload", {"lora_rank": 3, "precision": "bfloat16"}),
    ],
)
def test_a_run_with_deepspeed_goes_on_in_the_same_bits_and_its_checkpoint_is_one_as_any(train, tmp_path, name, more):
    """Detail 22. Two processes cannot share an odd number of weights evenly."""
    write_policy(tmp_path / "policy", hidden_size=33, num_attention_heads=3)
    sharded_run(train, tmp_path, **sharding(tmp_path, name), **more)


@pytest.mark.parametrize("name", ["none", "fsdp", *deepspeed("2", "3")])
def test_a_warm_up_of_the_critic_leaves_the_policy_alone_and_is_resumed_in_the_same_bits(train, tmp_path, name):
    """Detail 34: from a checkpoint inside of the warm-up, where the policy's optimizer has no state yet."""
    settings = {**sharding(tmp_path, name), "critic_warmup_iterations": 2, "checkpoint_every": 1, "max_checkpoints": 3}
    train("whole", 3, **settings)
    shutil.copytree(tmp_path / "whole", tmp_path / "parts")
    for number in (2, 3):
        shutil.rmtree(tmp_path / "parts" / "checkpoints" / f"iteration-{number:06}")
    train("parts", 3, "--resume", tmp_path / "parts", **settings)
    assert weights(tmp_path / "parts") == weights(tmp_path / "whole")
    assert figures(tmp_path / "parts") == figures(tmp_path / "whole")
    saved = tmp_path / "whole" / "checkpoints"
    before = load_file(tmp_path / "policy" / "model.safetensors")
    for number, stays in ((2, True), (3, False)):
        after = load_file(saved / f"iteration-{number:06}" / "policy" / "model.safetensors")
        assert all(torch.equal(after[key], tensor) for key, tensor in before.items()) == stays


@pytest.mark.parametrize("launcher", [TORCHRUN, ACCELERATE], ids=["torchrun", "accelerate"])
def test_rollouts_that_cannot_be_shared_out_are_refused(tmp_path, launcher):
    write_policy(tmp_path / "policy")
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "so"}\n')
    file = write_config(
        tmp_path / "run.toml", policy=tmp_path / "policy", prompts=tmp_path / "prompts.jsonl", rollout_batch_size=7,
        scorer_urls=("http://127.0.0.1:9",), output=tmp_path / "run", max_completion_tokens=8,
    )  # fmt: skip
    done = run(2, "-m", "plaudit_ppo", "train", "--config", file, launcher=launcher)
    assert done.returncode != 0
    says = "plaudit-ppo: error: rollout_batch_size = 7 cannot be shared by 2 processes"
    assert done.stderr.count(says) == 1


def published(tmp_path, name, processes, **settings):
    """The bytes of every file that an engine was given, and what it then sampled."""
    policy, tokenizer = load_policy(tmp_path / "policy")
    output = tmp_path / name
    output.mkdir()
    with fake_engines(policy, tokenizer) as (engine,):
        settings |= {"engine_urls": [engine.url]}
        done = run(processes, PUBLISH, tmp_path / "policy", output, json.dumps(settings))
        assert done.returncode == 0, done.stderr
        (directory,) = engine.published
    result = json.loads((output / "result.json").read_text())
    assert result.pop("processes") == processes
    assert result.pop("canary") < 1e-4
    files = {path.name: path.read_bytes() for path in directory.iterdir()}
    if "adapter_config.json" in files:  # PEFT writes a set there, in the order of this process's hashes
        adapter = json.loads(files["adapter_config.json"])
        files["adapter_config.json"] = adapter | {"target_modules": sorted(adapter["target_modules"])}
    return files, result


@pytest.mark.parametrize("lora", [{}, {"lora_rank": 2}, {"lora_rank": 2, "engine_sync": "weights"}],
                         ids=["whole", "adapter", "merged"])  # fmt: skip
def test_two_processes_give_an_engine_the_bytes_that_one_gives_and_sample_what_one_does(tmp_path, lora):
    write_policy(tmp_path / "policy", tie_word_embeddings=not lora)
    alone = published(tmp_path, "alone", 1, **lora)
    assert {"adapter_model.safetensors", "model.safetensors"} & alone[0].keys()
    assert len(alone[1]["completions"]) == 6
    assert published(tmp_path, "ddp", 2, **lora) == alone
    assert published(tmp_path, "fsdp", 2, sharding="fsdp", **lora) == alone


@pytest.mark.parametrize("name", deepspeed("2", "3"))
def test_two_processes_under_deepspeed_give_an_engine_the_bytes_that_one_gives(tmp_path, name):
    write_policy(tmp_path / "policy")
    alone = published(tmp_path, "alone", 1)
    assert published(tmp_path, "zero", 2, **sharding(tmp_path, name)) == alone


@pytest.mark.parametrize("name", ["none", "fsdp"])
def test_a_run_in_two_processes_that_samples_ahead_is_resumed_in_the_same_bits(tmp_path, name):
    write_policy(tmp_path / "policy")
    write_tiny_bundle(tmp_path / "bundle")
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "so"}\n{"prompt": "very very"}\n{"prompt": "so very good"}\n')
    policy, tokenizer = load_policy(tmp_path / "policy")
    with running_service(tmp_path / "bundle") as service, fake_engines(policy, tokenizer) as (engine,):

        def train(output, iterations, *flags):
            file = write_config(
                tmp_path / "run.toml", policy=tmp_path / "policy", prompts=tmp_path / "prompts.jsonl",
                scorer_urls=(service.url,), output=tmp_path / output, iterations=iterations, rollout_batch_size=12,
                rollout_micro_batch_size=4, max_completion_tokens=8, num_minibatches=2, learning_rate=3e-3,
                lr_schedule="constant", temperature=1.0, missing_eos="off", sampler="vllm", engine_urls=(engine.url,),
                sampling_correction="token_truncate", max_staleness=1, sharding=name, ratio_tolerance=1e-5,
            )  # fmt: skip
            done = run(2, "-m", "plaudit_ppo", "train", "--config", file, *flags)
            assert done.returncode == 0, done.stderr

        train("whole", 4)
        train("parts", 2)
        train("parts", 4, "--resume", tmp_path / "parts")
    log = figures(tmp_path / "whole")
    assert [line["sampler/staleness"] for line in log] == [0, 1, 1, 1]
    assert all(line["val/sampling_ratio_error"] < 1e-4 for line in log)  # by the weights that sampled
    assert torch.tensor([line["objective/kl"] for line in log[1:]]).diff().abs().min() > 1e-4
    assert weights(tmp_path / "parts") == weights(tmp_path / "whole")
    resumed = figures(tmp_path / "parts")
    for line in (log[1], resumed[1]):
        del line["sampler/canary_error"]  # of the last publish: the first part ended without one for a third batch
    assert resumed == log
