"""The trainer and engines that speak vLLM's routes over real sockets."""

import json

import pytest
import torch
from fake_vllm import KEY
from safetensors.torch import load_file
from tiny_trainer import weights

from plaudit_client import Score
from plaudit_ppo import PPOConfig, add_lora
from plaudit_ppo.errors import ConfigError, DivergenceError, EngineError, RatioError
from plaudit_ppo.runs.report import write_report


def test_what_an_engine_samples_is_learned_from(train):
    run, (engine,) = train()
    log = run.log()
    assert len(log) == 2
    for line in log:
        assert line["val/sampling_ratio_error"] < 1e-4
        assert line["sampler/canary_error"] < 1e-4
        assert line["sampler/retries"] == 0
        assert line["time/tokens_per_second"] > 0
    assert log[1]["objective/kl"] != 0
    assert [path.name for path in engine.published] == ["version-000000", "version-000001"]
    assert [path.name for path in (run.output / "engine").iterdir()] == ["version-000001"]
    assert "Canary error" in write_report(run.output).read_text()
    # It holds still while it loads weights, and forgets what it has kept of the old ones.
    control = [path for _, path, _ in engine.calls if path not in {"/v1/models", "/tokenize", "/v1/completions"}]
    assert control == ["/pause?mode=wait", "/collective_rpc", "/reset_prefix_cache", "/resume"] * 2


def test_rollouts_do_not_depend_on_how_many_engines_there_are_nor_on_requests_in_flight(train):
    alone, (engine,) = train(output="alone")
    several, engines = train(output="several", count=3, engine_concurrency=1)
    assert torch.equal(alone.trained(), several.trained())
    assert all(len(engine.published) == 2 for engine in engines)
    shares = [sum(path == "/v1/completions" for _, path, _ in engine.calls) for engine in engines]
    assert max(shares) - min(shares) <= 2  # of 8 rollouts in each of two iterations
    # Every rollout has a seed of its own, and the canary the same three in each iteration.
    seeds = [body["seed"] for _, path, body in engine.calls if path == "/v1/completions"]
    assert len(seeds) == 2 * (3 + 8)
    assert len(set(seeds)) == 3 + 2 * 8
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_stop_strings_end_completions_of_engines(train):
    """Detail 36."""
    items = []

    def scorer(batch):
        items.extend(batch)
        return [Score("ok", float(len(item["completion"]))) for item in batch]

    run, _ = train(scorer=scorer, stop=[" w5", " w6", " w7"], rollout_batch_size=16, iterations=1)
    assert not any(stop in item["completion"] for item in items for stop in (" w5", " w6", " w7"))
    assert sum(item["finished"] for item in items) == run.log()[0]["val/num_eos_tokens"] > 4
    assert all(line["val/sampling_ratio_error"] < 1e-4 for line in run.log())


@pytest.mark.parametrize("sync", ["auto", "weights"])
def test_of_a_lora_policy_an_engine_gets_the_adapter_or_the_weights_that_it_is_merged_into(train, make_policy, sync):
    settings = {"lora_rank": 2, "learning_rate": 1e-2, "engine_sync": sync}
    policy = add_lora(make_policy(), PPOConfig(lora_rank=2))
    run, (engine,) = train(policy=policy, base=make_policy(), reference=False, **settings)
    assert all(line["sampler/canary_error"] < 1e-4 for line in run.log())
    assert run.log()[1]["objective/kl"] != 0
    written = {path.name for path in engine.published[-1].iterdir()}
    assert ("adapter_model.safetensors" in written) == (sync == "auto")
    assert ("model.safetensors" in written) == (sync == "weights")


def test_a_tied_policy_is_written_with_its_head_apart(train, make_policy):
    policy = make_policy()
    policy.lm_head.weight = policy.model.embed_tokens.weight
    policy.config.tie_word_embeddings = True
    run, (engine,) = train(policy=policy)
    written = load_file(engine.published[-1] / "model.safetensors")
    assert torch.equal(written["lm_head.weight"], written["model.embed_tokens.weight"])
    assert json.loads((engine.published[-1] / "config.json").read_text())["tie_word_embeddings"] is False
    assert policy.config.tie_word_embeddings is True
    assert all(line["sampler/canary_error"] < 1e-4 for line in run.log())


REFUSED_AT_THE_START = [
    ("another tokenizer", ConfigError, "another tokenizer than the policy"),
    ("short context", ConfigError, "its context is 8 tokens, .* need 10; .* --max-model-len"),
    ("wrong key", EngineError, "/v1/models answers 401 .* engine_key_file"),
]


@pytest.mark.parametrize(("fault", "error", "says"), REFUSED_AT_THE_START)
def test_an_engine_of_another_model_is_refused_before_the_run_begins(train, tmp_path, fault, error, says):
    with pytest.raises(error, match=says):
        train(fault=fault)
    assert not (tmp_path / "run").exists()


# Where a fault begins: with the first publish, or among its rollouts, after the three completions of the canary.
FAULTS = [
    ("abort", 0, EngineError, "its answer cannot be used: .* finish_reason is 'abort'"),
    ("abort", 5, EngineError, "its answer cannot be used: .* finish_reason is 'abort'"),
    ("dead core", 5, EngineError, "/health answers 503; it is dead"),
    ("hang", 0, EngineError, "no answer to /v1/completions within 0.5 s"),
    ("hang", 5, EngineError, "no answer to /v1/completions within 0.5 s"),
    ("no logprobs", 0, EngineError, "does not have a logprob for each token"),
    ("no logprobs", 5, EngineError, "does not have a logprob for each token"),
    ("reload fails", 0, EngineError, "answers 500 .Call to collective_rpc method failed: other shapes."),
    ("short answer", 0, EngineError, "its answer cannot be used: it has 1 tokens of 6"),
    ("short answer", 5, EngineError, "its answer cannot be used: it has 1 tokens of 6"),
    ("stale weights", 0, EngineError, "version 0 of the policy, .* come from other weights"),
    ("wrong temperature", 0, EngineError, "version 0 of the policy, .* come from other weights"),
    ("wrong temperature", 5, RatioError, "other probabilities than the generating one"),
]


@pytest.mark.parametrize(("fault", "after", "error", "says"), FAULTS)
def test_a_fault_of_an_engine_ends_the_run_with_a_checkpoint_before_an_update(
    train, make_policy, tmp_path, fault, after, error, says
):
    timeout_s = 0.5 if fault == "hang" else 60.0
    policy, base = make_policy(), make_policy(seed=9 if fault == "stale weights" else 0)
    with pytest.raises(error, match=f"{says}.*; checkpoint: .*iteration-000000$") as caught:
        train(policy=policy, base=base, fault=fault, after=after, engine_timeout_s=timeout_s)
    assert caught.value.exit_code == 1
    assert torch.equal(weights(policy), weights(make_policy()))
    assert (tmp_path / "run" / "log.jsonl").read_text() == ""  # nothing was masked and learned from


@pytest.mark.parametrize("fault", ["stale weights", "wrong temperature"])
@pytest.mark.parametrize("max_staleness", [0, 1])
def test_the_canary_catches_a_fault_also_under_importance_weights(train, make_policy, fault, max_staleness):
    """Which would otherwise make up for what differs."""
    policy, base = make_policy(), make_policy(seed=9 if fault == "stale weights" else 0)
    settings = {"sampling_correction": "token_truncate", "max_staleness": max_staleness, "max_sampling_kl": 0.01}
    with pytest.raises(
        EngineError, match=r"version 0 .* come from other weights: .* limit 1.00e-02 \(max_sampling_kl\)"
    ):
        train(policy=policy, base=base, fault=fault, **settings)
    assert torch.equal(weights(policy), weights(make_policy()))


def test_an_engine_that_keeps_old_weights_is_caught_under_importance_weights_once_they_differ_enough(train):
    """A fault that begins after the first publish: the engine goes on with version 0."""
    settings = {"sampling_correction": "token_truncate", "learning_rate": 3e-2, "iterations": 4}
    with pytest.raises(EngineError, match=r"version 1 of the policy, .* come from other weights"):
        train(fault="stale weights", after=3 + 8, **settings)


def test_an_engine_that_is_not_there_is_named(make_trainer):
    with pytest.raises(
        EngineError, match=r"^engine http://127.0.0.1:9: no answer to /v1/models \(Connection refused\)"
    ):
        make_trainer(sampler="vllm", engine_urls=["http://127.0.0.1:9"])


def test_a_run_whose_engine_dies_goes_on_with_another_to_the_same_weights(train):
    undisturbed, _ = train(output="undisturbed")
    with pytest.raises(EngineError, match=r"checkpoint: .*iteration-000001"):
        train(on_iteration=lambda metrics, engine: engine.close())
    resumed, (engine,) = train(resume=True)
    assert [path.name for path in engine.published] == ["version-000001"]
    assert torch.equal(resumed.trained(), undisturbed.trained())
    assert resumed.log_without_times() == undisturbed.log_without_times()


def test_a_policy_of_nan_is_given_to_no_engine(train, make_policy):
    policy, engines = make_policy(), []
    with torch.no_grad():
        policy.lm_head.weight[3, 3] = torch.nan
    with pytest.raises(DivergenceError, match="probabilities are not finite"):
        train(policy=policy, engines=engines)
    assert engines[0].published == []


def test_the_key_in_the_file_is_sent_and_an_empty_file_is_refused(train, tmp_path):
    (tmp_path / "key").write_text(f"{KEY}\n")
    train(fault="wrong key", iterations=1, engine_key_file=str(tmp_path / "key"))
    (tmp_path / "key").write_text("\n")
    with pytest.raises(ConfigError, match="holds no key"):
        train(output="empty", engine_key_file=str(tmp_path / "key"))
