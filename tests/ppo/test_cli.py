import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from local_hub import COMMIT, local_hub
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from transformers.models.auto import CONFIG_MAPPING

from plaudit_ppo.cli import main
from plaudit_ppo.config import PPOConfig
from plaudit_ppo.settings_text import load_config, to_toml

COMMAND = str(Path(sys.executable).with_name("plaudit-ppo"))


class Service(ThreadingHTTPServer):
    """Answers /score with 1.0 for every completion, once `may_answer` is set."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.asked, self.may_answer = threading.Event(), threading.Event()
        self.may_answer.set()
        self.headers_seen = []


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_error(404)

    def do_POST(self):
        items = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["items"]
        self.server.headers_seen.append(dict(self.headers))
        self.server.asked.set()
        self.server.may_answer.wait(60)
        num_results = sum(len(item.get("completions", [""])) for item in items)
        results = [{"status": "ok", "score": 1.0, "num_tokens": 3, "truncated": False}] * num_results
        body = json.dumps({"model": "m", "fingerprint": "sha256:0", "engine": "e", "results": results}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.fixture
def service():
    server = Service()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.may_answer.set()
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def write_config(policy, tokenizer, tmp_path, monkeypatch):
    """A run that works, but for the settings that are replaced."""
    monkeypatch.delenv("PLAUDIT_URL", raising=False)
    monkeypatch.delenv("PLAUDIT_API_KEY", raising=False)
    policy.save_pretrained(tmp_path / "policy")
    tokenizer.save_pretrained(tmp_path / "policy")
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "w2 w3"}\n{"prompt": "w4"}\n')

    def write(**settings):
        small = {
            "policy": str(tmp_path / "policy"),
            "prompts": str(tmp_path / "prompts.jsonl"),
            "scorer_urls": ("http://127.0.0.1:9",),
            "output": str(tmp_path / "run"),
            "iterations": 2,
            "rollout_batch_size": 4,
            "max_completion_tokens": 4,
            "scorer_timeout_s": 0.3,
        }
        path = tmp_path / "run.toml"
        path.write_text(to_toml(PPOConfig(**small | settings)))
        return str(path)

    return write


def refused(capsys, *argv):
    """The exit code and the one line on stderr."""
    capsys.readouterr()  # fixtures that save models write there too
    try:
        code = main(argv)
    except SystemExit as stop:
        code = stop.code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("plaudit-ppo: error: ")
    assert err.count("\n") == 1
    return code, err


def test_a_run_over_http_leaves_a_policy_and_one_line(write_config, service, tmp_path):
    """The real process over a real socket; flag and environment win over the file."""
    done = subprocess.run(
        [
            COMMAND,
            "train",
            "--config",
            write_config(scorer_timeout_s=30.0, max_completion_tokens=32),
            "--output",
            str(tmp_path / "other"),
        ],
        env={"PLAUDIT_URL": service.url, "PLAUDIT_API_KEY": "secret", "PATH": "", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("2 iterations, 8 rollouts in ")
    assert done.stdout.count("\n") == 1
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "other" / "policy")
    assert len((tmp_path / "other" / "log.jsonl").read_text().splitlines()) == 2
    assert {headers["Authorization"] for headers in service.headers_seen} == {"Bearer secret"}
    assert "secret" not in (tmp_path / "other" / "config.toml").read_text()


def test_ctrl_c_ends_the_process_at_once_even_while_a_score_is_awaited(write_config, service):
    service.may_answer.clear()
    process = subprocess.Popen(
        [COMMAND, "train", "--config", write_config(scorer_timeout_s=60.0, scorer_urls=(service.url,))],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert service.asked.wait(60)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=10)
    assert (process.returncode, out, err) == (130, "", "plaudit-ppo: interrupted\n")


def test_a_service_that_cannot_be_reached_is_exit_1_and_leaves_a_checkpoint(capsys, write_config, tmp_path):
    code, err = refused(capsys, "train", "--config", write_config())
    assert code == 1
    assert "100% of the rollouts got no score, limit 10% (max_masked_share); first failure: " in err
    assert "http://127.0.0.1:9" in err
    checkpoint = tmp_path / "run" / "checkpoints" / "iteration-000000"
    assert f"; checkpoint: {checkpoint}" in err
    assert AutoModelForCausalLM.from_pretrained(checkpoint / "policy")


def test_a_taken_port_for_prometheus_is_exit_2(capsys, write_config):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        code, err = refused(capsys, "train", "--config", write_config(metrics_port=taken.getsockname()[1]))
    assert code == 2
    assert "cannot be bound (Address already in use); choose another port, or 0 for none" in err


@pytest.mark.parametrize(
    "settings",
    [
        {"lora_rank": 2},
        {"critic_trunk": "policy"},
        {"lora_rank": 2, "critic_trunk": "policy"},
        {"lora_rank": 2, "precision": "bfloat16", "gradient_checkpointing": True},
    ],
)
def test_lora_and_a_critic_on_the_policys_network_are_settings(capsys, write_config, service, tmp_path, settings):
    config = write_config(scorer_urls=(service.url,), scorer_timeout_s=30.0, **settings)
    assert main(["train", "--config", config]) == 0
    assert (tmp_path / "run" / "adapter").exists() == ("lora_rank" in settings)
    assert (tmp_path / "run" / "critic" / "value_head.safetensors").exists() == ("critic_trunk" in settings)
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "policy")


@pytest.mark.parametrize("lora_rank", [0, 2])
@pytest.mark.parametrize("start", [None, "policy", "reward-model"])
def test_a_critic_starts_from_the_policy_or_from_a_reward_model(
    write_config, service, make_critic, tokenizer, tmp_path, start, lora_rank
):
    """Detail 19: with LoRA and without, a reward model's head is kept, and a policy gets a new one."""
    make_critic().save_pretrained(tmp_path / "reward-model")
    tokenizer.save_pretrained(tmp_path / "reward-model")
    critic = None if start is None else str(tmp_path / start)
    config = write_config(scorer_urls=(service.url,), scorer_timeout_s=30.0, critic=critic, lora_rank=lora_rank)
    assert main(["train", "--config", config]) == 0
    trained = load_file(tmp_path / "run" / "critic" / "model.safetensors")
    origin = load_file(tmp_path / (start or "policy") / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    assert torch.allclose(trained[name], origin[name], atol=1e-3)  # a few steps of 3e-6
    assert not torch.equal(trained[name], origin[name])
    assert ("score.weight" in origin) == (start == "reward-model")
    if "score.weight" in origin:
        assert torch.allclose(trained["score.weight"], origin["score.weight"], atol=1e-3)


def test_a_run_that_a_guard_stopped_goes_on_where_it_stood(capsys, write_config, service, tmp_path):
    """The same command line with --resume; what was changed meanwhile is told."""
    refused(capsys, "train", "--config", write_config())
    changed = write_config(scorer_urls=(service.url,), scorer_timeout_s=30.0, max_masked_share=0.5)
    assert main(["train", "--config", changed, "--resume", str(tmp_path / "run")]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("2 iterations, 8 rollouts in ")
    assert "0.00% of the rollouts without a score, 0 requests repeated" in out
    assert "plaudit-ppo: changed since the run began: max_masked_share: 0.1 -> 0.5\n" in err
    assert f'scorer_urls: ["http://127.0.0.1:9"] -> ["{service.url}"]' in err
    assert main(["train", "--resume", str(tmp_path / "run")]) == 0  # without --config: the settings in DIR; all is done
    assert capsys.readouterr().out.startswith("2 iterations, 8 rollouts in ")


def test_one_command_begins_a_run_and_goes_on_with_it(capsys, write_config, service, tmp_path):
    """As a job that is started again whenever it was stopped, here also before its first checkpoint."""
    command = ["train", "--config", write_config(scorer_urls=(service.url,), scorer_timeout_s=30.0)]
    command += ["--resume", str(tmp_path / "run")]
    assert main(command) == 0
    assert f"plaudit-ppo: {tmp_path}/run holds no run yet; a new one starts there\n" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    assert main(command) == 0
    out, err = capsys.readouterr()
    assert out.startswith("2 iterations, 8 rollouts in ")
    assert "holds no run yet" not in err
    assert "changed since" not in err


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        ((), "required: COMMAND"),
        (("fly",), "invalid choice: 'fly'"),
        (("train",), "--config FILE or --resume DIR is needed"),
        (("train", "--config", "absent.toml"), "absent.toml: cannot be read"),
        (("train", "--config", "absent.toml", "--output", "x", "--resume", "x"), "not allowed with"),
        (("train", "--resume", "absent"), "absent holds no run (no config.toml); give the output directory of a run"),
    ],
)
def test_a_wrong_call_is_exit_2(capsys, argv, says):
    code, err = refused(capsys, *argv)
    assert code == 2
    assert says in err


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"policy": None, "scorer_urls": ()}, "policy, scorer_urls (or --url) not set"),
        ({"policy": "absent"}, "policy: absent has no config.json"),
        ({"critic": "absent"}, "critic: absent has no config.json"),
        ({"prompts": "absent.jsonl"}, "absent.jsonl: cannot be read"),
        ({"scorer_urls": ("ftp://a",)}, "'ftp://a'"),
        ({"eval_scorer_urls": ("ftp://b",)}, "'ftp://b'"),
        ({"max_completion_tokens": 64}, "64 positions"),
    ],
)
def test_a_wrong_setting_is_exit_2(capsys, write_config, settings, says):
    code, err = refused(capsys, "train", "--config", write_config(**settings))
    assert code == 2
    assert says in err


def test_a_prompt_line_that_is_not_json_is_named(capsys, write_config, tmp_path):
    config = write_config()
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "w2"}\n{"prompt": \n')
    code, err = refused(capsys, "train", "--config", config)
    assert code == 2
    assert "prompts.jsonl line 2: not JSON" in err


def test_without_torch_the_remedy_is_named(write_config):
    code = "import sys; sys.modules['torch'] = None; from plaudit_ppo.cli import main; sys.exit(main(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", code, "train", "--config", write_config()], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr == "plaudit-ppo: error: torch is not installed; pip install 'plaudit[train]'\n"


def test_without_any_package_of_the_trainer_the_remedy_is_named(write_config):
    code = "import sys; sys.modules['pydantic'] = None; from plaudit_ppo.cli import main; sys.exit(main(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", code, "train", "--config", write_config()], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr == "plaudit-ppo: error: pydantic is not installed; pip install 'plaudit[train]'\n"


def test_the_help_names_settings_with_their_defaults_and_the_environment(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["train", "--help"])
    out = capsys.readouterr().out
    assert "kl_coef = 0.05" in out
    assert "PLAUDIT_URL" in out
    assert "PLAUDIT_API_KEY" in out


def test_the_package_and_the_command_line_are_imported_without_torch():
    code = "import plaudit_ppo.cli, sys; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def damaged(folder, cause):
    """Makes of a run's files what a checkpoint or a user may make of them; returns what is said of it."""
    policy = folder / "policy"
    tokenizer = policy / "tokenizer_config.json"
    match cause:
        case "truncated weights":
            weights = policy / "model.safetensors"
            weights.write_bytes(weights.read_bytes()[:-100])
            return "policy: .*policy cannot be loaded"
        case "no tokenizer.json":
            (policy / "tokenizer.json").write_text("{")
            return "policy's tokenizer: .*policy cannot be loaded"
        case "no config.json":
            (policy / "config.json").write_text("{")
            return "policy: .*policy cannot be loaded"
        case "an unknown architecture":
            (policy / "config.json").write_text('{"model_type": "never-heard-of"}')
            return "policy: .*policy cannot be loaded"
        case "a template that raises":
            chats = '{"prompt": [{"role": "user", "content": "w2"}]}\n'
            (folder / "prompts.jsonl").write_text(chats)
            (policy / "chat_template.jinja").write_text("{{ raise_exception('no users') }}")
            return r"prompts.jsonl line 1: the policy's chat template failed on it \(no users\)"
        case "a template that asks for the date":
            (folder / "prompts.jsonl").write_text('{"prompt": [{"role": "user", "content": "w2"}]}\n')
            (policy / "chat_template.jinja").write_text("{{ strftime_now('%Y') }} {{ messages[0].content }}")
            return r"prompts.jsonl line 1: .* asks for today's date \(strftime_now\)"
        case "a text that is none":
            (folder / "prompts.jsonl").write_text('{"prompt": "\\ud800"}\n')
            return "prompts.jsonl line 1: prompt contains a lone surrogate"
        case "weights of NaN":
            weights = policy / "model.safetensors"
            save_file({name: tensor * float("nan") for name, tensor in load_file(weights).items()}, weights)
            return "the policy's probabilities are not finite.*; checkpoint: .*iteration-000000"
        case "no EOS":
            settings = json.loads(tokenizer.read_text())
            del settings["eos_token"]
            tokenizer.write_text(json.dumps(settings))
            for name in ("config.json", "generation_config.json"):
                file = policy / name
                file.write_text(json.dumps(json.loads(file.read_text()) | {"eos_token_id": None}))
            return "no EOS token"


@pytest.mark.parametrize(
    "cause",
    [
        "truncated weights",
        "no tokenizer.json",
        "no config.json",
        "an unknown architecture",
        "a template that raises",
        "a template that asks for the date",
        "a text that is none",
        "weights of NaN",
        "no EOS",
    ],
)
def test_no_cause_outside_of_the_trainer_is_called_a_bug(capsys, write_config, tmp_path, cause):
    """One line that says what is wrong with it, and an exit code that says whose it is."""
    config = write_config()
    says = damaged(tmp_path, cause)
    code, err = refused(capsys, "train", "--config", config)
    assert re.search(says, err), err
    assert "internal error" not in err
    assert code == (1 if cause == "weights of NaN" else 2)


@pytest.mark.parametrize("architecture", ["granite", "cohere2", "lfm2"])
def test_a_policy_without_a_classifier_in_transformers_gets_the_remedy_which_works(
    capsys, write_config, service, tmp_path, architecture
):
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    more = {"num_key_value_heads": 1, "vocab_size": 32, "max_position_embeddings": 64, "bos_token_id": None}
    own = {"full_attn_idxs": [1], "block_multiple_of": 8} if architecture == "lfm2" else {}
    config = CONFIG_MAPPING[architecture](**sizes, **more, **own, eos_token_id=0, pad_token_id=1)
    file = write_config(scorer_urls=(service.url,), scorer_timeout_s=30.0)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "policy")
    code, err = refused(capsys, "train", "--config", file)
    assert code == 2
    assert f"transformers has no sequence classifier of model type {architecture}" in err
    assert 'set critic_trunk = "policy" (a head on the policy\'s network), or critic to the directory of' in err
    file = write_config(scorer_urls=(service.url,), scorer_timeout_s=30.0, critic_trunk="policy")
    assert main(["train", "--config", file]) == 0


def test_a_policy_without_a_key_value_cache_is_refused(capsys, write_config, tmp_path):
    file = write_config(critic_trunk="policy")
    config = CONFIG_MAPPING["mamba"](hidden_size=16, num_hidden_layers=1, vocab_size=32, eos_token_id=0)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "policy")
    code, err = refused(capsys, "train", "--config", file)
    assert code == 2
    assert "policy: MambaForCausalLM has no key-value cache (past_key_values), which sampling needs" in err


def test_a_warning_of_the_trainer_is_a_line_of_the_command(capsys, write_config, service, tmp_path):
    settings = json.loads((tmp_path / "policy" / "config.json").read_text()) | {"eos_token_id": 5}
    file = write_config(scorer_urls=(service.url,), scorer_timeout_s=30.0)
    (tmp_path / "policy" / "config.json").write_text(json.dumps(settings))
    (tmp_path / "policy" / "generation_config.json").unlink()
    capsys.readouterr()
    assert main(["train", "--config", file]) == 0
    assert capsys.readouterr().err.startswith("plaudit-ppo: the policy's config.json names token 5 as EOS, ")


def test_a_disk_that_fills_up_is_one_line_and_the_run_goes_on_once_there_is_room(write_config, service, tmp_path):
    """What writes weights raises an exception of its own. A limit of the size of files stands for the disk."""
    code = (
        "import resource, sys; from plaudit_ppo.cli import main; from plaudit_ppo.runs.checkpoints import save_file;"
        "import plaudit_ppo.runs.checkpoints as checkpoints;"
        "checkpoints.save_file = lambda *of: [resource.setrlimit(resource.RLIMIT_FSIZE, (20000, -1)), save_file(*of)];"
        "sys.exit(main(sys.argv[1:]))"
    )
    config = write_config(scorer_urls=(service.url,), scorer_timeout_s=30.0, max_completion_tokens=32)
    done = subprocess.run([sys.executable, "-c", code, "train", "--config", config], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("plaudit-ppo: error: ")
    assert "checkpoints/iteration-000002: cannot be written (SafetensorError: " in done.stderr
    assert done.stderr.endswith("resume the run once it can\n")
    assert done.stderr.count("\n") == 1
    assert main(["train", "--resume", str(tmp_path / "run")]) == 0


@pytest.mark.parametrize("file", ["log.jsonl", "samples.jsonl"])
@pytest.mark.parametrize("line", ["3", '{"step": 1}', '{"iteration": 1}'])
def test_a_report_of_what_is_no_run_is_refused(capsys, write_config, service, tmp_path, file, line):
    assert main(["train", "--config", write_config(scorer_urls=(service.url,), scorer_timeout_s=30.0)]) == 0
    (tmp_path / "run" / file).write_text(line + "\n")
    code, err = refused(capsys, "report", str(tmp_path / "run"))
    assert code == 2
    assert f"{tmp_path}/run" in err
    assert "internal error" not in err


def test_a_run_that_is_complete_exits_0_whoever_reads_and_in_whatever_letters(write_config, service, tmp_path):
    """The last print is no part of the run; the same of a report."""
    output = str(tmp_path / "прогон")
    config = write_config(scorer_urls=(service.url,), scorer_timeout_s=30.0, max_completion_tokens=32, output=output)
    latin = {**os.environ, "PYTHONIOENCODING": "latin-1"}
    done = subprocess.run([COMMAND, "train", "--config", config], env=latin, capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")
    assert rb"policy in " in done.stdout
    assert rb"\u043f\u0440\u043e\u0433\u043e\u043d/policy" in done.stdout
    with Path("/dev/full").open("w") as full:
        for command in (["report", output], ["train", "--resume", output]):
            assert subprocess.run([COMMAND, *command], env=latin, stdout=full).returncode == 0
    assert (Path(output) / "report.html").exists()


def test_without_docstrings_the_remedy_is_named(write_config):
    """transformers makes functions of docstrings, which `python -OO` strips."""
    command = [sys.executable, "-OO", "-m", "plaudit_ppo", "train", "--config", write_config()]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("plaudit-ppo: error: policy: ")
    assert done.stderr.endswith("run Python without -OO (PYTHONOPTIMIZE=2), which strips them\n")


ABORTS = "import atexit, os; from plaudit_ppo.cli import command; atexit.register(os.abort); command()"


def test_the_command_leaves_no_interpreter_that_a_thread_could_find_ended(tmp_path):
    done = subprocess.run([sys.executable, "-c", ABORTS, "report", str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("plaudit-ppo: error: ")


def test_settings_of_the_command_line_win_over_file_and_environment(write_config, service, tmp_path, monkeypatch):
    monkeypatch.setenv("PLAUDIT_URL", "http://127.0.0.1:9")
    settings = [f"scorer_urls={service.url}", "iterations=1", "scorer_timeout_s=30", "kl_coef=0.2"]
    command = ["train", "--config", write_config(), *(word for each in settings for word in ("--set", each))]
    assert main(command) == 0
    config = load_config(tmp_path / "run" / "config.toml")
    assert (config.scorer_urls, config.iterations, config.kl_coef) == ((service.url,), 1, 0.2)


@pytest.mark.parametrize("flags", [(), ("--dry-run",)])
def test_a_bad_setting_of_the_command_line_is_exit_2(capsys, write_config, flags):
    code, err = refused(capsys, "train", "--config", write_config(), "--set", "epoch=2", *flags)
    assert code == 2
    assert '--set epoch=2: unknown setting "epoch"; did you mean "epochs"?' in err


def test_a_new_settings_file_is_written_once_and_trains_when_filled_in(
    capsys, write_config, service, tmp_path, monkeypatch
):
    write_config()
    monkeypatch.chdir(tmp_path)
    assert main(["init", "new.toml", "--set", "policy=policy", "--set", "prompts=prompts.jsonl"]) == 0
    assert capsys.readouterr().out.startswith(
        "new.toml: set policy, prompts and scorer_urls in this file, then run plaudit-ppo train"
    )
    code, err = refused(capsys, "init", "new.toml")
    assert (code, "new.toml: already exists and was not changed" in err) == (2, True)
    small = ["iterations=1", "rollout_batch_size=2", "max_completion_tokens=4"]
    flags = [word for each in small for word in ("--set", each)]
    assert main(["train", "--config", "new.toml", "--url", service.url, *flags]) == 0
    assert main(["init", "-"]) == 0
    assert "\n# kl_coef = 0.05\n" in capsys.readouterr().out


def listing(folder):
    return sorted(str(path.relative_to(folder)) for path in Path(folder).rglob("*"))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"lora_rank": 2},
        {"critic_trunk": "policy", "num_minibatches": 4, "max_constant_iterations": 1},
        {
            "samples_per_prompt": 3,
            "rollout_batch_size": 6,
            "rollout_micro_batch_size": 3,
            "iterations": 2,
            "critic_warmup_iterations": 1,
            "max_completion_tokens": 16,
            "overlong_buffer_tokens": 12,
        },
        {"eval_prompts": "held-out.jsonl", "eval_decoding": "sampled", "stop": ("w5",)},
    ],
)
def test_a_dry_run_does_all_that_a_run_does_and_leaves_nothing(
    capsys, write_config, service, tmp_path, monkeypatch, settings
):
    output = tmp_path / "runs" / "one"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "held-out.jsonl").write_text('{"prompt": "w6 w7"}\n{"prompt": "w8"}\n{"prompt": "w9"}\n')
    config = write_config(output=str(output), scorer_urls=(service.url,), scorer_timeout_s=30.0, **settings)
    before, written = listing(tmp_path), []
    remove = shutil.rmtree
    monkeypatch.setattr(shutil, "rmtree", lambda path, **how: written.append(listing(path)) or remove(path, **how))
    assert main(["train", "--config", config, "--dry-run"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0] == f"2 prompts of {tmp_path}/prompts.jsonl: 1 to 2 tokens, 1.5 in the mean; 0 longer ones left out"
    assert out[-1].startswith("dry run: everything was loaded, and an iteration ran to its end")
    held_out = "held out: 3 prompts of held-out.jsonl: 1 to 2 tokens, 1.33 in the mean; 0 longer ones left out"
    assert out[1:-2] == ([held_out] if "eval_prompts" in settings else [])
    assert ("checkpoints/best" in written[-1]) == ("eval_prompts" in settings)
    assert re.match(r"plan: 0\.0\d GB in each process at its peak, in \w+ \(", out[-2])
    assert listing(tmp_path) == before
    left = {"policy/README.md", "policy/config.json", "summary.json", "checkpoints/iteration-000001/state.json"}
    assert left <= set(written[-1])
    assert ("adapter" in written[-1]) == ("lora_rank" in settings)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"policy": "absent"}, "policy: absent has no config.json"),
        ({"max_completion_tokens": 64}, "64 positions"),
        ({"trackers": ("none-of-these",)}, 'trackers: "none-of-these" is not a tracker'),
        ({"max_prompt_tokens": 1}, "2 tokens, limit 1 to 1 (max_prompt_tokens)"),
        ({"scorer_urls": ("http://127.0.0.1:9",)}, "100% of the rollouts got no score"),
        ({"eval_prompts": "absent.jsonl"}, "absent.jsonl: cannot be read (No such file or directory); a source of"),
        ({"prompt_weights": (1.0,), "max_prompt_tokens": 1, "long_prompts": "drop", "prompts": "long.jsonl"}, "all 1"),
    ],
)
def test_a_dry_run_fails_at_once_where_the_run_would(
    capsys, write_config, service, tmp_path, monkeypatch, settings, says
):
    config = write_config(**{"scorer_urls": (service.url,)} | settings)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "long.jsonl").write_text('{"prompt": "w2 w3"}')
    before = listing(tmp_path)
    _, err = refused(capsys, "train", "--config", config, "--dry-run")
    assert says in err
    assert listing(tmp_path) == before


def test_a_dry_run_fails_at_once_where_the_result_could_not_be_written(
    capsys, write_config, service, tmp_path, monkeypatch
):
    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    config = write_config(scorer_urls=(service.url,), lora_rank=2)
    before = listing(tmp_path)
    monkeypatch.setattr("plaudit_ppo.runs.run_files.save_merged", fail)
    code, err = refused(capsys, "train", "--config", config, "--dry-run")
    assert (code, "the results of the run could not be written at its end" in err) == (2, True)
    assert listing(tmp_path) == before


def test_a_dry_run_of_a_directory_that_holds_a_run_and_of_a_resume_is_refused(capsys, write_config, tmp_path):
    config = write_config()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "log.jsonl").touch()
    code, err = refused(capsys, "train", "--config", config, "--dry-run")
    assert (code, "already holds a run (log.jsonl)" in err) == (2, True)
    code, err = refused(capsys, "train", "--config", config, "--dry-run", "--resume", str(tmp_path / "run"))
    assert (code, "cannot be combined with --resume" in err) == (2, True)


def test_a_shell_completes_commands_flags_and_settings(tmp_path):
    pytest.importorskip("argcomplete")

    def completed(line):
        words = tmp_path / "words"
        asked = {"_ARGCOMPLETE": "1", "COMP_LINE": line, "COMP_POINT": str(len(line)), "_ARGCOMPLETE_IFS": "\n"}
        subprocess.run([COMMAND], env={**os.environ, **asked, "_ARGCOMPLETE_STDOUT_FILENAME": str(words)}, timeout=60)
        return [word.strip() for word in words.read_text().split("\n")]

    assert completed("plaudit-ppo in") == ["init"]
    assert completed("plaudit-ppo train --dr") == ["--dry-run"]
    assert completed("plaudit-ppo train --set kl_c") == ["kl_coef=", "kl_controller="]


def test_a_policy_of_the_hub_is_pinned_to_its_commit_also_for_whoever_resumes(write_config, service, tmp_path):
    config = write_config(policy="org/tiny@v1", critic="org/tiny", scorer_urls=(service.url,), scorer_timeout_s=30.0)
    command = [COMMAND, "train", "--config", config]
    with local_hub(org__tiny=tmp_path / "policy") as hub:
        env = {**os.environ, **hub.environment(tmp_path / "home")}
        first = subprocess.run([*command, "--set", "iterations=1"], capture_output=True, text=True, env=env)
        assert first.returncode == 0, first.stderr
        again = subprocess.run([*command, "--resume", tmp_path / "run"], capture_output=True, text=True, env=env)
    assert again.returncode == 0, again.stderr
    assert "iterations: 1 -> 2" in again.stderr
    assert "policy:" not in again.stderr
    kept = load_config(tmp_path / "run" / "config.toml")
    assert kept.policy == kept.critic == f"org/tiny@{COMMIT}"
    card = (tmp_path / "run" / "policy" / "README.md").read_text()
    assert "\nbase_model: org/tiny\n" in card
    assert f"\n`org/tiny` at commit `{COMMIT}`, trained by PPO" in card
    assert f"- critic: from `org/tiny` at commit `{COMMIT}`\n" in card
