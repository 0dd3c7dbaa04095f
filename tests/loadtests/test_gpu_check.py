import json
import os
import shutil
import subprocess
import sys

import gpu_check
import gpu_costs
import gpu_steps
import pytest
from gpu_check import Part
from gpu_measuring import Figures, Setting

SCRIPT = gpu_check.__file__
HEAD = {"device": "cpu", "size": "tiny", "seconds": 1.0, "started": "2026-11-29T00:00:00+00:00"}


def a_setting(work, **changes):
    fields = {"device": "cpu", "size": "tiny", "precision": "fp32", "seconds": 0.01, "models": ["llama"]}
    return Setting(**{**fields, "work": str(work), **changes})


def check(*arguments, **env):
    command = [sys.executable, SCRIPT, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=1800, env={**os.environ, **env})


@pytest.fixture(scope="module")
def work(causal_bundle, tmp_path_factory):
    """A folder in which the tiny Llama is there in float32, and nothing else."""
    folder = tmp_path_factory.mktemp("work")
    shutil.copytree(causal_bundle, folder / "bundles" / "llama-fp32")
    shutil.copytree(causal_bundle.parent / "checkpoint", folder / "checkpoints" / "llama")
    return folder


def test_the_cost_of_a_call_is_the_line_through_its_times():
    tokens = [8, 64, 512, 4096]
    assert gpu_costs.fit_calls(tokens, [0.002 + 5e-6 * n for n in tokens]) == pytest.approx((0.002, 5e-6))


def test_a_call_never_costs_less_than_nothing():
    call_s, token_s = gpu_costs.fit_calls([100, 200], [1.0, 3.0])
    assert call_s == 0
    # By hand: the least squares of (100 x - 1) / 1 and (200 x - 3) / 3.
    assert token_s == pytest.approx((100 + 200 / 3) / (100**2 + (200 / 3) ** 2))


def test_times_that_do_not_grow_fit_nothing():
    with pytest.raises(ValueError, match="measure for longer"):
        gpu_costs.fit_calls([100, 200], [2.0, 1.0])


def test_a_token_of_a_prefix_costs_a_part_of_a_computed_one():
    assert gpu_costs.fit_prefix([100, 400], [0.1, 0.4], token_s=0.01) == pytest.approx(0.1)
    assert gpu_costs.fit_prefix([100, 400], [-0.1, 0.0], token_s=0.01) == 0


def test_the_smallest_of_nearly_best_batches_is_named():
    assert gpu_costs.nearly_best([10, 20, 40], [1.0, 1.01, 2.0]) == 20


def test_calls_are_short_rows_and_then_ever_more_of_full_length():
    assert gpu_costs.call_shapes(100, 450) == [(1, 8), (1, 32), (1, 100), (2, 100), (4, 100)]
    assert gpu_costs.call_shapes(512, 100)[-1] == (1, 512)


def test_texts_have_many_lengths_and_enough_tokens():
    lengths = gpu_steps.text_lengths(64, 1000)
    assert sum(lengths) >= 1000 > sum(lengths[:-1])
    assert 4 <= min(lengths) < max(lengths) <= 64
    assert gpu_steps.text_lengths(64, 1000) == lengths


FAKE = """
import json, os, signal, sys, threading
step, part, _, file = sys.argv[1:]
open(file, "w").write(json.dumps({"until_then": 7}))
if part == "raises":
    raise RuntimeError("no kernel <for> this")
if part == "crashes":
    os.kill(os.getpid(), signal.SIGSEGV)
if part == "hangs":
    threading.Event().wait()
"""


@pytest.fixture
def fake_parts(tmp_path, monkeypatch):
    """Parts that raise, crash, hang or work by their name; `run(part, limit_s)` is what became of one."""
    program = tmp_path / "fake.py"
    program.write_text(FAKE)
    monkeypatch.setattr(gpu_check, "PROGRAM", program)
    return lambda part, limit_s=60.0: gpu_check.run_part("costs", part, a_setting(tmp_path), limit_s, tmp_path)


@pytest.mark.parametrize(
    ("part", "error"), [("raises", "RuntimeError: no kernel <for> this"), ("crashes", "ended by SIGSEGV")]
)
def test_what_a_part_measured_before_it_failed_is_kept(fake_parts, part, error):
    done = fake_parts(part)
    assert (done.status, done.error, done.figures) == ("failed", error, {"until_then": 7})


def test_a_part_that_hangs_is_killed(fake_parts):
    done = fake_parts("hangs", 0.2)
    assert (done.status, done.error) == ("failed", "took more than 0 s")


def test_figures_of_an_earlier_run_are_none_of_this_one(fake_parts, tmp_path):
    assert fake_parts("works").figures == {"until_then": 7}
    (tmp_path / "fake.py").write_text("")
    assert fake_parts("works").figures == {}


def test_parts_that_fail_leave_the_others_and_make_the_exit_code_1(tmp_path, monkeypatch, capsys):
    def run_part(step, part, setting, limit_s, output):
        if part == "fp16":
            return Part(step, part, "failed", 1.0, "ended by SIGSEGV")
        return Part(step, part, "ok", 1.0, None, {"weights_bytes": 12345})

    monkeypatch.setattr(gpu_check, "run_part", run_part)
    monkeypatch.setattr(sys, "argv", ["gpu_check", "--device", "cpu", "--only", "memory", "--output", str(tmp_path)])
    assert gpu_check.main() == 1
    parts = json.loads((tmp_path / "gpu-check.json").read_text())["parts"]
    assert [(part["part"], part["status"]) for part in parts] == [
        ("fp32", "ok"),
        ("fp16", "failed"),
        ("bf16", "skipped"),
    ]
    assert "1 of 3 parts failed" in capsys.readouterr().out


def test_the_check_ends_when_its_time_is_up(tmp_path, monkeypatch):
    limits = []

    def run_part(step, part, setting, limit_s, output):
        limits.append(limit_s)
        return Part(step, part, "ok", 25.0)

    monkeypatch.setattr(gpu_check, "run_part", run_part)
    arguments = ["--only", "memory", "--limit-s", "40", "--output", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["gpu_check", *arguments])
    assert gpu_check.main() == 0
    assert limits == [gpu_check.DEVICE_LIMIT_S, 40, 15]  # the device is asked for first
    parts = json.loads((tmp_path / "gpu-check.json").read_text())["parts"]
    assert [part["status"] for part in parts] == ["ok", "ok", "skipped"]
    assert "--limit-s" in parts[-1]["error"]


def test_without_the_device_there_is_one_line_and_no_report(tmp_path):
    done = check("--device", "cuda:99", "--output", tmp_path, CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 2
    assert done.stderr.startswith("gpu_check: --device cuda:99")
    assert done.stderr.count("\n") == 1
    assert "plaudit[service-gpu]" in done.stderr
    assert not (tmp_path / "gpu-check.json").exists()


def test_the_page_has_a_row_for_each_part_and_a_table_for_each_table():
    calls = [{"rows": 1, "tokens": 512, "ms": 1.25}, {"rows": 32, "tokens": 16384, "ms": 23.5}]
    parts = [
        Part("costs", "bf16", "ok", 9.0, None, {"call_tokens_fitted": 300.5, "calls": calls}),
        Part("memory", "fp32", "failed", 1.0, "<no> memory"),
        Part("memory", "fp16", "ok", 2.0, None, {"weights_bytes": 15_009_857_536}),
    ]
    page = gpu_check.page(HEAD, parts)
    assert page.count("<tr>") == 5 + 3 + 3  # one part downwards, its table, two parts side by side
    assert "<td>16,384</td>" in page
    assert "<td>call tokens fitted</td><td>300.5</td>" in page
    assert "<th>weights bytes</th>" in page
    assert "&lt;no&gt; memory" in page
    assert 'src="' not in page


def test_figures_are_json_at_every_moment(tmp_path):
    figures = Figures(tmp_path / "figures.json")
    figures.put(first=1.5)
    figures.put(second=float("inf"))
    assert json.loads((tmp_path / "figures.json").read_text()) == {"first": 1.5, "second": "inf"}


def test_parity_is_the_check_of_the_service(work, tmp_path):
    figures = tmp_path / "figures.json"
    gpu_steps.check_parity("llama-fp32", a_setting(work), Figures(figures))
    shown = json.loads(figures.read_text())
    assert shown["engine"] == "onnxruntime-cpu-fp32"
    assert shown["between_batches"] == 0
    assert 0 < shown["of_what_is_allowed"] < 1


def test_a_bundle_that_is_there_is_not_made_again(work, tmp_path):
    figures = tmp_path / "figures.json"
    gpu_steps.make_bundle("llama-fp32", a_setting(work), Figures(figures))
    assert json.loads(figures.read_text())["was_there"] is True


def test_on_the_cpu_the_parts_measure_and_a_missing_bundle_fails_alone(work, tmp_path):
    steps = "versions,costs,prefix,memory,service"
    done = check("--device", "cpu", "--seconds", 0.01, "--only", steps, "--work", work, "--output", tmp_path)
    report = json.loads((tmp_path / "gpu-check.json").read_text())
    found = {(part["step"], part["part"]): part for part in report["parts"]}
    statuses = {key: part["status"] for key, part in found.items()}
    assert statuses == {
        ("versions", "machine"): "ok",
        ("costs", "fp32"): "ok",
        ("prefix", "fp32"): "ok",
        ("memory", "fp32"): "ok",
        ("memory", "fp16"): "failed",
        ("memory", "bf16"): "skipped",
        ("service", "fp32"): "ok",
    }, done.stderr
    assert done.returncode == 1
    assert "--only bundles" in found["memory", "fp16"]["error"]
    assert found["memory", "fp32"]["figures"]["prefix_bytes_per_token"] == 2 * 2 * 2 * 8 * 4  # layers, kv, heads, size
    assert found["costs", "fp32"]["figures"]["call_tokens_today"] == 16
    assert found["prefix", "fp32"]["figures"]["largest_distance"] == 0
    assert found["service", "fp32"]["figures"]["share_in_time"] == 1
    assert (tmp_path / "gpu-check.html").exists()


@pytest.mark.slow
def test_the_whole_check_makes_its_bundles_and_runs_on_the_cpu(tmp_path):
    arguments = ["--seconds", 0.01, "--models", "llama", "--work", tmp_path, "--output", tmp_path]
    done = check("--device", "cpu", *arguments)
    report = json.loads((tmp_path / "gpu-check.json").read_text())
    assert [part for part in report["parts"] if part["status"] == "failed"] == [], done.stderr
    assert done.returncode == 0
    assert {part["step"] for part in report["parts"]} == set(gpu_check.STEPS)
    assert {part["part"] for part in report["parts"] if part["status"] == "skipped"} == {
        "llama-bf16",
        "bf16",
    }


@pytest.mark.parametrize(
    "arguments", [["--only", "nothing"], ["--models", "gpt5"], ["--device", "tpu"], ["--size", "2b"]]
)
def test_a_wrong_option_is_refused(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        gpu_check.parse(arguments)
    assert ended.value.code == 2
    assert arguments[0] in capsys.readouterr().err


def test_sizes_and_precision_are_by_device():
    on_cpu, on_cuda = gpu_check.parse(["--device", "cpu"]), gpu_check.parse([])
    assert (on_cpu.size, on_cpu.precision) == ("tiny", "fp32")
    assert (on_cuda.device, on_cuda.size, on_cuda.precision) == ("cuda", "1b", "bf16")
    assert gpu_check.parse(["--only", "service,versions"]).only == ["versions", "service"]
