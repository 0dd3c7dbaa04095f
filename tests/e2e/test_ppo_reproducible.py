"""Same seed, same bits: in two runs, when the scorer is killed and restarted, and when the run is killed and resumed.

Real processes on both sides of a real socket, ended by SIGKILL.
"""

import os
import signal
import subprocess
from pathlib import Path

import pytest
from ppo_runs import (
    evaluations,
    figures,
    free_port,
    train_to_the_end,
    training,
    wait_for_iterations,
    wait_until,
    weights,
    write_config,
    write_policy,
)

from plaudit_ppo.runs.log import read_log
from plaudit_service.testing import running_service, write_tiny_bundle

ITERATIONS = 24


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ppo")
    write_policy(folder / "policy")
    write_tiny_bundle(folder / "bundle")
    (folder / "prompts.jsonl").write_text('{"prompt": "so"}\n{"prompt": "very very"}\n{"prompt": "so very good"}\n')
    (folder / "held-out.jsonl").write_text('{"prompt": "good"}\n{"prompt": "bad very"}\n{"prompt": "fine so very"}\n')
    return folder


@pytest.fixture(scope="module")
def config(place):
    """A function that writes the settings of one run and returns the file."""

    def write(name, url):
        return write_config(
            place / f"{name}.toml",
            policy=place / "policy", prompts=place / "prompts.jsonl", scorer_urls=(url,), output=place / name,
            iterations=ITERATIONS, rollout_batch_size=16, rollout_micro_batch_size=8, max_completion_tokens=8,
            num_minibatches=2, learning_rate=3e-3, temperature=1.0, missing_eos="off", kl_controller="adaptive",
            checkpoint_every=5, scorer_timeout_s=120, eval_prompts=place / "held-out.jsonl", eval_every=3,
        )  # fmt: skip

    return write


@pytest.fixture(scope="module")
def undisturbed(place, config):
    """The output of a run that nothing happens to."""
    with running_service(place / "bundle") as service:
        train_to_the_end("--config", config("undisturbed", service.url))
    return place / "undisturbed"


def kill(process):
    process.kill()
    process.wait()


def test_two_runs_of_one_seed_end_in_identical_weights(place, config, undisturbed):
    """Detail 22."""
    with running_service(place / "bundle") as service:
        train_to_the_end("--config", config("again", service.url))
    assert weights(place / "again") == weights(undisturbed)
    assert figures(place / "again") == figures(undisturbed)
    assert evaluations(place / "again") == evaluations(undisturbed)
    scores = [line["objective/scores"] for line in read_log(undisturbed / "log.jsonl")]
    assert scores[-1] > scores[0] + 1  # it has learned something that could differ


@pytest.mark.slow
def test_killing_and_restarting_the_scorer_twice_changes_no_bit(place, config, undisturbed):
    port = free_port()
    output = place / "scorer-killed"
    with training("--config", config("scorer-killed", f"http://127.0.0.1:{port}")) as run:
        for iterations in (4, 13):  # no evaluation follows, whose retries are not in the log
            with running_service(place / "bundle", flags=("--port", str(port))) as service:
                wait_for_iterations(run, output, iterations)
                kill(service.process)
        with running_service(place / "bundle", flags=("--port", str(port))):
            _, err = run.communicate(timeout=240)
    assert run.returncode == 0, err
    log = read_log(output / "log.jsonl")
    assert sum(line["scoring/retries"] for line in log[4:]) >= 2  # both kills were felt
    assert sum(line["scoring/masked_share"] for line in log) == 0
    assert weights(output) == weights(undisturbed)
    assert figures(output) == figures(undisturbed)


@pytest.mark.slow
def test_killing_and_resuming_the_run_changes_no_bit(place, config, undisturbed):
    output = place / "run-killed"
    with running_service(place / "bundle") as service:
        file = config("run-killed", service.url)
        for arguments, iterations in ((("--config", file), 2), (("--resume", output), 8), (("--resume", output), 16)):
            with training(*arguments) as run:
                wait_for_iterations(run, output, iterations)
                kill(run)
                assert run.returncode == -9
        out = train_to_the_end("--resume", output)
    assert out.startswith(f"{ITERATIONS} iterations, {16 * ITERATIONS} rollouts in ")
    assert weights(output) == weights(undisturbed)
    assert figures(output) == figures(undisturbed)
    assert (output / "samples.jsonl").read_bytes() == (undisturbed / "samples.jsonl").read_bytes()
    assert evaluations(output) == evaluations(undisturbed)  # and the best of them


AS_PROCESS_1 = ("unshare", "--pid", "--fork", "--kill-child")


def terminate(config, output, iterations, wrapper=()):
    """Run until so many iterations are done, end it by SIGTERM, and see that it leaves a checkpoint."""
    with training("--config", config, "--resume", output, wrapper=wrapper) as run:
        wait_for_iterations(run, output, iterations)
        pid = run.pid
        if wrapper:
            (pid,) = map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
        os.kill(pid, signal.SIGTERM)
        _, err = run.communicate(timeout=120)
    assert run.returncode == 130
    done = len(read_log(output / "log.jsonl"))
    checkpoint = output / "checkpoints" / f"iteration-{done:06d}"
    said = f"plaudit-ppo: terminated after {done} iterations; checkpoint: {checkpoint}; continue with --resume\n"
    assert err.endswith(said)
    assert checkpoint.is_dir()


def test_sigterm_ends_a_run_with_a_checkpoint_that_resumes_in_the_same_bits(place, config, undisturbed):
    """In the middle of whatever it does."""
    output = place / "terminated"
    with running_service(place / "bundle") as service:
        file = config("terminated", service.url)
        for iterations in (3, 9):
            terminate(file, output, iterations)
        train_to_the_end("--resume", output)
    assert weights(output) == weights(undisturbed)
    assert figures(output) == figures(undisturbed)


def test_sigterm_ends_a_run_that_is_process_1_with_a_checkpoint_too(place, config):
    """Process 1 gets only signals that it has a handler for."""
    if subprocess.run([*AS_PROCESS_1, "true"], capture_output=True).returncode != 0:
        pytest.skip("no process here may become process 1 of a namespace of its own")
    with running_service(place / "bundle") as service:
        file = config("terminated-as-1", service.url)
        terminate(file, place / "terminated-as-1", 1, wrapper=AS_PROCESS_1)


def test_sigterm_ends_a_run_at_once_while_it_waits_for_a_score(place, config):
    """With the checkpoint of the iteration's start, which here is that of the run."""
    port, output = free_port(), place / "waiting"
    with training("--config", config("waiting", f"http://127.0.0.1:{port}")) as run:
        wait_until((output / "log.jsonl").exists, run)
        run.terminate()
        _, err = run.communicate(timeout=60)
    assert run.returncode == 130
    assert err.startswith("plaudit-ppo: terminated after 0 iterations; checkpoint: ")
    assert (output / "checkpoints" / "iteration-000000").is_dir()


def test_a_killed_run_cannot_be_overwritten_by_a_new_one(place, config, undisturbed):
    with training("--config", config("undisturbed", "http://127.0.0.1:9")) as run:
        _, err = run.communicate(timeout=120)
    assert run.returncode == 2
    assert "already holds a run (log.jsonl); choose another directory, or resume that run" in err


def test_a_run_is_resumed_once_it_is_dead_and_not_before(place, config, undisturbed):
    """The first process waits for its scorer; the second one must not write into the same log meanwhile."""
    port, output = free_port(), place / "locked"
    file = config("locked", f"http://127.0.0.1:{port}")
    with training("--config", file) as run:
        wait_until((output / "config.toml").exists, run)
        with training("--config", file, "--resume", output) as second:
            _, err = second.communicate(timeout=120)
        assert run.poll() is None
        kill(run)
    assert second.returncode == 2
    assert f"output: {output} is in use by another run (process {run.pid} on " in err
    with running_service(place / "bundle", flags=("--port", str(port))):
        train_to_the_end("--resume", output)
    assert weights(output) == weights(undisturbed)
