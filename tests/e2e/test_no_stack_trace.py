"""Whatever a user, a checkpoint, a disk or a model did: a command ends in one line that says what, and an exit code.

Files that every table speaks of are made below: `garbage` is no text, `deep.json` nests too deep, `loop` is a link to
itself, `full` a disk without room, `checkpoint` and `bundle` a tiny encoder's, `run` a run of PPO that has a log.
"""

import json
import os
import shutil
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from urllib.request import urlopen

import pytest
import torch
from ppo_runs import free_port, wait_until
from transformers import AutoConfig, AutoModelForCausalLM

from plaudit_export.testing import tiny_causal_checkpoint, tiny_encoder_checkpoint
from plaudit_service.testing import write_tiny_bundle

BIN = Path(sys.executable).parent
LONG = "x" * 300
DIGITS = "9" * 4000
NOBODYS = "~nobody-has-this-name/x"
NO_HUB = {"HF_HUB_OFFLINE": "1"}
LATIN = {"PYTHONIOENCODING": "latin-1"}
OPTIMIZED = {"PYTHONOPTIMIZE": "2"}  # docstrings are None


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The working directory of every command."""
    path = tmp_path_factory.mktemp("causes")
    (path / "garbage").write_bytes(bytes(range(128, 256)) * 8)
    (path / "deep.json").write_text("[" * 100_000)
    (path / "empty").mkdir()
    (path / "loop").symlink_to(path / "loop")
    (path / "key-nul").write_bytes(b"a\0b")
    (path / "policy-infinite").mkdir()
    (path / "policy-infinite" / "tokenizer.json").write_text(
        '{"added_tokens": [{"id": Infinity, "content": "a", "special": true}]}'
    )
    (path / "golden.jsonl").write_text('{"text": "a"}\n')
    (path / "prompts.jsonl").write_text('{"prompt": "a"}\n')
    (path / os.fsdecode(b"bundle-\xff")).mkdir()
    write_tiny_bundle(path / "bundle")
    write_tiny_bundle(path / "模型")
    write_bundle_with(path / "bundle-deep", "bundle.json", "[" * 100_000)
    write_bundle_with(path / "bundle-cut", "model.onnx", "")
    tiny_encoder_checkpoint(path / "checkpoint")
    for name, file, content in DAMAGES:
        shutil.copytree(path / "checkpoint", path / name)
        (path / name / file).write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
        if file.endswith("index.json"):  # which is read where the weights are in several files
            (path / name / "model.safetensors").rename(path / name / "model-1.safetensors")
    write_policy(path / "policy")
    for name, file in (("policy-cut", "model.safetensors"), ("policy-garbage", "tokenizer.json")):
        shutil.copytree(path / "policy", path / name)
        (path / name / file).write_bytes((path / "garbage").read_bytes())
    for name, text in RUNS.items():
        (path / name).mkdir()
        (path / name / "config.toml").write_text("")
        (path / name / "log.jsonl").write_text(text)
    return path


def write_bundle_with(path, file, content):
    write_tiny_bundle(path)
    (path / file).write_text(content)


def write_policy(path):
    tiny_causal_checkpoint(path)
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(path), dtype=torch.float32)
    model.save_pretrained(path)


@pytest.fixture(scope="module")
def full(folder):
    """A disk of 64 KiB; skips where none can be mounted."""
    disk = folder / "full"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], capture_output=True).returncode != 0:
        pytest.skip("no file system may be mounted here")
    yield disk
    subprocess.run(["umount", disk], check=True)


def config(**changes):
    """A config of the tiny encoder with some fields changed."""
    known = {"model_type": "bert", "architectures": ["BertForSequenceClassification"], "num_labels": 1}
    return {**known, **changes}


DAMAGES = [
    ("no-json", "config.json", b"\x80"),
    ("a-number", "config.json", 3),
    ("deep", "config.json", b"[" * 100_000),
    ("architecture", "config.json", config(architectures=[1])),
    ("unknown", "config.json", config(model_type="nonsense")),
    ("heads", "config.json", config(num_attention_heads=0)),
    ("width", "config.json", config(hidden_size="wide")),
    ("labels", "config.json", config(id2label="good")),
    ("weights", "model.safetensors", b"\x80" * 100),
    ("no-weights", "model.safetensors", b""),
    ("tokenizer", "tokenizer.json", {}),
    ("tokenizer-list", "tokenizer.json", []),
    ("tokenizer-config", "tokenizer_config.json", []),
    ("template", "chat_template.jinja", b"{% for %}"),
    ("template-number", "tokenizer_config.json", {"chat_template": 3}),
    ("template-bytes", "chat_template.jinja", b"\x80"),
    ("adapter", "adapter_config.json", []),
    ("auto-map", "config.json", config(auto_map=3)),
    ("auto-map-tokenizer", "tokenizer_config.json", {"auto_map": 3, "tokenizer_class": 3}),
    ("index", "model.safetensors.index.json", []),
    ("index-map", "model.safetensors.index.json", {"weight_map": {"a": "../../a"}}),
    ("quantized", "config.json", config(quantization_config=3)),
    ("architecture-text", "config.json", config(architectures="BertForSequenceClassification")),
    ("architecture-list", "config.json", config(architectures=[["BertForSequenceClassification"]])),
    ("auto-map-list", "config.json", config(auto_map=["own.RewardModel"])),
    ("pad-long", "config.json", config(pad_token_id=int(DIGITS))),
    ("index-number", "model.safetensors.index.json", {"weight_map": {"a": 3}}),
    ("max-length", "tokenizer_config.json", {"model_max_length": "512"}),
    ("added-tokens", "tokenizer_config.json", {"added_tokens_decoder": {"Infinity": {"content": "a"}}}),
    *((f"base-{number}", "adapter_config.json", {"peft_type": "LORA", "base_model_name_or_path": base})
      for number, base in enumerate([3, ["checkpoint"], "", "a\0b", NOBODYS, LONG, None])),
    ("task-list", "adapter_config.json", {"peft_type": "LORA", "task_type": [], "base_model_name_or_path": "a"}),
]  # fmt: skip

RUNS = {"run-garbage": "\x00\n", "run-number": "3\n", "run-empty": "{}\n", "run-deep": "[" * 100_000 + "\n"}


def is_one_line(name, exit_code, said):
    """One line, but for what an export has said of its steps; and nothing that reads like a bug."""
    lines = [line for line in said.splitlines() if not line.endswith(" ...") and ": note: " not in line]
    (line,) = lines if len(lines) == 1 else [""]
    return exit_code == 2 and line.startswith(f"{name}: error: ") and "internal" not in line and len(line) < 1000


def run(folder, name, *arguments, stdout=subprocess.DEVNULL, **environment):
    """A finished command, with standard error."""
    command = [BIN / name, *arguments]
    return subprocess.run(
        command, cwd=folder, env=os.environ | NO_HUB | environment, stdin=subprocess.DEVNULL, stdout=stdout,
        stderr=subprocess.PIPE, text=True, timeout=300,
    )  # fmt: skip


PROCESSES = [
    ("plaudit-serve", [], {}),
    ("plaudit-serve", [LONG], {}),
    ("plaudit-serve", ["loop"], {}),
    ("plaudit-serve", ["garbage"], {}),
    ("plaudit-serve", ["empty"], {}),
    ("plaudit-serve", ["bundle-\udcff"], {}),
    ("plaudit-serve", ["bundle-deep"], {}),
    ("plaudit-serve", ["bundle-cut"], {}),
    ("plaudit-serve", ["org/name"], {}),
    ("plaudit-serve", ["org/name"], {"HF_HOME": "garbage"}),
    ("plaudit-serve", ["没有"], LATIN),
    ("plaudit-serve", ["bundle", "--api-key-file", "garbage"], {}),
    ("plaudit-serve", ["bundle", "--api-key-file", "empty"], {}),
    ("plaudit-serve", ["bundle", "--api-key-file", "key-nul"], {}),
    ("plaudit-serve", ["bundle", "--dialects", "openrlhf", "--policy-tokenizer", "policy-infinite"], {}),
    ("plaudit-serve", ["bundle", "--max-batch-tokens", DIGITS * 2], {}),
    ("plaudit-score", ["bundle", "--batch-size", DIGITS * 2], {}),
    ("plaudit-demo", ["--seed", DIGITS * 2], {}),
    ("plaudit-serve", ["bundle", "--tls-certificate-file", "empty", "--tls-key-file", "garbage"], {}),
    ("plaudit-serve", ["bundle", "--host", "ä" * 70, "--allow-unauthenticated"], {}),
    ("plaudit-serve", ["bundle", "--port", "9" * 30], {}),
    ("plaudit-serve", ["bundle", "--num-threads", "9" * 12], {}),
    ("plaudit-serve", ["bundle"], {"PLAUDIT_PORT": "tcp://10.0.0.1:80"}),
    ("plaudit-fetch", ["没有", "new"], LATIN),
    ("plaudit-fetch", ["bundle", LONG], {}),
    ("plaudit-fetch", ["bundle", "garbage/new"], {}),
    ("plaudit-fetch", ["bundle", "loop"], {}),
    ("plaudit-fetch", ["bundle", "/proc/new"], {}),
    ("plaudit-fetch", ["bundle-deep", "new"], {}),
    ("plaudit-fetch", ["bundle", "new", "--fingerprint", "模"], LATIN),
    ("plaudit-export", ["inspect", "没有"], LATIN | OPTIMIZED),
    ("plaudit-score", ["没有", "--url", "http://127.0.0.1:9"], LATIN | OPTIMIZED),
    ("plaudit-demo", ["--output", "garbage"], {}),
    ("plaudit-demo", ["--output", "loop"], {}),
    ("plaudit-demo", ["--output", LONG], LATIN | OPTIMIZED),
    ("plaudit-demo", ["--seed", "x"], {}),
    ("plaudit-ppo", ["report", "没有"], LATIN | OPTIMIZED),
]


@pytest.mark.parametrize(("name", "arguments", "environment"), PROCESSES)
def test_a_cause_that_is_found_at_the_start_is_one_line(folder, name, arguments, environment):
    done = run(folder, name, *arguments, **environment)
    assert is_one_line(name, done.returncode, done.stderr), (done.returncode, done.stderr)


EXPORT = [
    ["inspect", LONG],
    ["inspect", "bundle-\udcff"],
    ["verify", "bundle-deep"],
    ["verify", "bundle-cut"],
    ["checkpoint", "loop", "new"],
    ["checkpoint", "garbage", "new"],
    ["checkpoint", "empty", "new"],
    ["checkpoint", "org/name", "new"],
    ["checkpoint", "checkpoint", "loop"],
    ["checkpoint", "checkpoint", "garbage"],
    ["checkpoint", "checkpoint", "garbage/new"],
    ["checkpoint", "checkpoint", "/proc/new"],
    ["checkpoint", "checkpoint", "new-\udcff"],
    ["checkpoint", "checkpoint", "new", "--golden", "garbage"],
    ["checkpoint", "checkpoint", "new", "--golden", "deep.json"],
    ["checkpoint", "checkpoint", "new", "--golden", "empty"],
    ["checkpoint", "checkpoint", "new", "--chat-template", "garbage"],
    ["checkpoint", "checkpoint", "new", "--name", "\udcff"],
    ["checkpoint", "checkpoint", "new", "--max-tokens", DIGITS * 2],
    ["checkpoint", "checkpoint", "new", "--token-logits", f"id:{DIGITS * 2}"],
    *([command, NOBODYS, *more] for command, more in (("checkpoint", ["new"]), ("cache", []), ("inspect", []))),
    ["checkpoint", LONG, "new"],
    ["cache", "checkpoint", "--cache", NOBODYS],
    ["cache", "base-0"],
    ["onnx", "empty", "new"],
    ["onnx", "bundle", "new"],
    *(["checkpoint", name, "new"] for name, _, _ in DAMAGES),
]

PPO = [
    ["train"],
    ["train", "--config", "garbage"],
    ["train", "--config", "empty"],
    ["train", "--config", LONG],
    ["train", "--resume", "garbage"],
    ["train", "--resume", "loop"],
    *(["report", place] for place in ("garbage", "empty", "loop", *RUNS)),
]
TRAINING = [
    {"policy": "garbage"},
    {"policy": "empty"},
    {"policy": "policy-cut"},
    {"policy": "policy-garbage"},
    {"policy": "policy", "prompts": "garbage"},
    {"policy": "policy", "prompts": "deep.json"},
    {"policy": "policy", "prompts": "empty"},
    {"policy": "policy", "critic": "garbage"},
    {"policy": "policy", "output": "garbage"},
    {"policy": "policy", "output": "loop"},
    {"policy": "policy", "output": "/proc/new"},
]


DONE = ["plaudit-export", "checkpoint", "checkpoint", "done"]


@pytest.fixture(scope="module")
def forked(folder):
    """Exit code and standard error of each command that needs torch; `DONE` cannot print its report."""
    cases = [["plaudit-export", *arguments] for arguments in EXPORT] + [["plaudit-ppo", *each] for each in PPO]
    for number, settings in enumerate(TRAINING):
        lines = [f"{name} = {json.dumps(value)}" for name, value in ({"prompts": "prompts.jsonl"} | settings).items()]
        (folder / f"train-{number}.toml").write_text("\n".join(lines))
        cases.append(["plaudit-ppo", "train", "--config", f"train-{number}.toml", "--url", "http://127.0.0.1:9"])
    runs = [{"command": each, "environment": NO_HUB, "stdout": None} for each in cases]
    runs.append({"command": DONE, "environment": NO_HUB, "stdout": "/dev/full"})
    script = [sys.executable, Path(__file__).with_name("forked_commands.py"), folder]
    done = subprocess.run(script, input=json.dumps(runs), stdout=subprocess.PIPE, text=True, check=True)
    return dict(zip(map(tuple, [*cases, DONE]), json.loads(done.stdout), strict=True))


def test_causes_that_need_torch_to_be_found_are_one_line(folder, forked):
    wrong = [
        f"{' '.join(case)}: {how}"
        for case, how in forked.items()
        if case != tuple(DONE) and not is_one_line(case[0], *how)
    ]
    assert wrong == [], "\n".join(wrong)
    assert not (folder / "new").exists()


def test_a_full_disk_is_one_line_and_leaves_nothing_half_done(folder, full, serve):
    (full / "rest").write_bytes(b"\0" * 65_536)
    with serve(folder / "bundle") as service:
        ended = [
            run(folder, "plaudit-fetch", "bundle", "full/new"),
            run(folder, "plaudit-score", "golden.jsonl", "-o", "full/new", "--url", service.url),
            run(folder, "plaudit-export", "checkpoint", "checkpoint", "full/new"),
        ]
    for done in ended:
        assert done.returncode in {1, 2}
        assert done.stderr.splitlines()[-1].startswith(f"{Path(done.args[0]).name}: error: ")
        assert "o space left" in done.stderr
        assert "Traceback" not in done.stderr
    assert [file.name for file in full.iterdir()] == ["rest"]


@pytest.mark.parametrize(
    "command",
    [
        ["plaudit-fetch", "bundle", "fetched"],
        ["plaudit-export", "inspect", "bundle"],
        ["plaudit-serve", "--help"],
        ["plaudit-score", "--help"],
    ],
    ids=" ".join,
)
def test_an_output_that_cannot_be_written_is_one_line(folder, command):
    read, write = os.pipe()
    os.close(read)
    for output in (os.open("/dev/full", os.O_WRONLY), write):
        done = run(folder, *command, stdout=output)
        os.close(output)
        assert done.returncode == 1
        assert done.stderr.startswith(f"{command[0]}: error: output: ")
        assert done.stderr.count("\n") == 1


CLOSED = {"stdin": "<&-", "stdout": ">&-", "stderr": "2>&-"}


def run_closed(folder, names, command):
    """A finished command that was started without some of its standard streams."""
    shell = ["sh", "-c", f'exec "$@" {" ".join(CLOSED[name] for name in names)}', "sh"]
    return subprocess.run(
        [*shell, BIN / command[0], *command[1:]], cwd=folder, env=os.environ | NO_HUB, stdin=subprocess.DEVNULL,
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip


@pytest.mark.parametrize("names", [["stdin"], ["stdout"], ["stderr"], ["stdin", "stdout"], list(CLOSED)], ids=",".join)
def test_a_command_that_has_something_to_write_and_nowhere_to_says_so(folder, serve, names):
    (folder / "one.jsonl").write_text('"good"\n')
    with serve(folder / "bundle") as service:
        commands = [
            ["plaudit-score", "one.jsonl", "--url", service.url],
            ["plaudit-export", "inspect", "bundle"],
            ["plaudit-fetch", "bundle", "closed"],
        ]
        ended = [run_closed(folder, names, command) for command in commands]
        whole = run_closed(folder, names, ["plaudit-score", "one.jsonl", "-o", "scores.jsonl", "--url", service.url])
    for done, (name, *_) in zip(ended, commands, strict=True):
        says = f"{name}: error: output: the stream is closed\n" if "stdout" in names and "stderr" not in names else ""
        assert (done.returncode, done.stderr) == (int("stdout" in names), says)
    assert (whole.returncode, whole.stderr) == (0, "")
    assert len((folder / "scores.jsonl").read_text().splitlines()) == 1


@pytest.mark.parametrize("names", [["stdin"], list(CLOSED)], ids=",".join)
def test_an_input_that_is_closed_is_exit_2(folder, names):
    done = run_closed(folder, names, ["plaudit-score", "--url", "http://127.0.0.1:9"])
    assert done.returncode == 2
    assert done.stderr == (
        "" if "stderr" in names else "plaudit-score: error: -: cannot be read: Bad file descriptor\n"
    )


def answers(url):
    try:
        return urlopen(url).status == 200  # noqa: S310  of ours
    except OSError:  # it listens not yet, or is not ready
        return False


def test_a_service_without_standard_streams_answers_and_ends_as_ever(folder):
    port = free_port()
    shell = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh"]
    command = [*shell, BIN / "plaudit-serve", "bundle", "--port", str(port)]
    with subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE) as process:
        try:
            wait_until(lambda: answers(f"http://127.0.0.1:{port}/readyz"), process)
        finally:
            process.terminate()
    assert process.returncode == 0


def test_what_is_done_is_done_though_its_report_cannot_be_printed(folder, forked):
    exit_code, said = forked[tuple(DONE)]
    assert exit_code == 0
    assert "error" not in said
    assert (folder / "done/bundle.json").is_file()


@pytest.mark.parametrize(
    "command",
    [
        ["plaudit-export", "inspect", "模型"],
        ["plaudit-export", "verify", "模型"],
        ["plaudit-fetch", "模型", "模型-again"],
        ["plaudit-score", "模.jsonl", "-o", "分.jsonl", "--url", "URL"],
        ["plaudit-export", "--help"],
        ["plaudit-demo", "--help"],
        ["plaudit-serve", "--help"],
    ],
    ids=" ".join,
)
def test_letters_that_the_output_lacks_and_docstrings_that_python_strips_change_no_exit_code(folder, serve, command):
    (folder / "模.jsonl").write_text('"good"\n')
    with serve(folder / "bundle") if "URL" in command else nullcontext() as service:
        done = run(folder, *(service.url if part == "URL" else part for part in command), **LATIN, **OPTIMIZED)
    assert (done.returncode, "error" in done.stderr) == (0, False)


INTERRUPTED_IMPORT = """
import os, signal, sys
from plaudit_service.cli import main

class Finder:
    def find_spec(self, name, *_):
        if name == "plaudit_service.settings":
            try:
                signal.raise_signal(signal.SIGTERM)
            except BaseException:  # C code may take it for a bug, or swallow it
                sys.exit("raised")

sys.meta_path.insert(0, Finder())
sys.exit(main(["bundle"]))
"""


def test_sigterm_while_packages_are_imported_raises_nothing(folder):
    done = subprocess.run([sys.executable, "-c", INTERRUPTED_IMPORT], cwd=folder, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("command", ["checkpoint", "onnx"])
def test_an_export_without_docstrings_says_why_it_cannot_be(folder, command):
    done = run(folder, "plaudit-export", command, "checkpoint", "new", **OPTIMIZED)
    assert is_one_line("plaudit-export", done.returncode, done.stderr)
    assert "run without -OO (PYTHONOPTIMIZE=2)" in done.stderr
