import contextlib
import fcntl
import gzip
import json
import os
import pty
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from plaudit_client.testing import FakeService, FakeTransport, json_response
from plaudit_client.transport import HttpResponse

COMMAND = [sys.executable, "-m", "plaudit_client.cli"]


def length(item):
    if "token_ids" in item:
        return float(len(item["token_ids"]))
    text = item.get("text", item.get("prompt", "") + item.get("completion", ""))
    return "too_long" if len(text) > 100 else float(len(text))


def run(*arguments, stdin=b"", **environment):
    return subprocess.run(
        [*COMMAND, *arguments], input=stdin, capture_output=True, env=os.environ | environment, timeout=60
    )


def jsonl(*values):
    return b"".join(json.dumps(value).encode() + b"\n" for value in values)


def read(output):
    return [json.loads(line) for line in output.splitlines()]


def assert_one_line_of_error(done, exit_status, message):
    lines = done.stderr.decode().splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("plaudit-score: error: ")
    assert message in lines[0]
    assert done.returncode == exit_status


@pytest.fixture
def service():
    return FakeService(length)


@pytest.fixture
def url(serve, service):
    return serve(service)


def test_lines_of_every_form_are_scored_in_order(url):
    done = run(
        "--url",
        url,
        stdin=jsonl("a", {"text": "bb", "id": "x"}, {"prompt": "p", "completions": ["", "q"]}, {"token_ids": [1, 2]}),
    )
    assert (done.returncode, done.stderr) == (0, b"")
    text, item, group, ids = read(done.stdout)
    assert text == {"line": 1, "status": "ok", "score": 1.0, "num_tokens": 1, "truncated": False}
    assert (item["line"], item["id"], item["score"]) == (2, "x", 2.0)
    assert [result["score"] for result in group["results"]] == [1.0, 2.0]
    assert ids["score"] == 2.0


def test_a_long_input_is_scored_in_order_by_requests_of_the_batch_size(url, service):
    sizes = [1 + index % 7 for index in range(500)]
    done = run("--url", url, "--batch-size", "20", stdin=jsonl(*["a" * size for size in sizes]))
    assert [answer["score"] for answer in read(done.stdout)] == sizes
    bodies = [json.loads(request.body) for request in service.requests if request.method == "POST"]
    assert [len(body["items"]) for body in bodies] == [20] * 25


def test_files_are_read_also_compressed_and_written_as_a_whole(url, tmp_path):
    source, target = tmp_path / "in.jsonl.gz", tmp_path / "out.jsonl"
    source.write_bytes(gzip.compress(jsonl("a", "bb")))
    done = run(str(source), "-o", str(target), "--url", url)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert [answer["score"] for answer in read(target.read_bytes())] == [1.0, 2.0]
    assert {path.name for path in tmp_path.iterdir()} == {"in.jsonl.gz", "out.jsonl"}


def test_rows_of_a_table_are_scored_as_lines_are_without_their_other_columns(url, tmp_path):
    pairs = [
        {"id": 7, "prompt": "a", "chosen": "bb", "rejected": "c", "margin": float("nan"), "tools": None},
        {"id": 8, "prompt": None, "chosen": "bbb", "rejected": "cc", "margin": 0.5, "tools": []},
    ]
    table = tmp_path / "pairs.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(pairs), table)
    done = run(str(table), "--url", url)
    assert done.returncode == 0, done.stderr
    answers = read(done.stdout)
    assert [
        (answer["line"], answer["id"], answer["chosen"]["score"], answer["rejected"]["score"]) for answer in answers
    ] == [
        (1, 7, 3.0, 2.0),
        (2, 8, 3.0, 2.0),
    ]
    assert b"pair accuracy: 1.0000" in done.stderr
    lines = jsonl(*({key: value for key, value in pair.items() if key != "margin"} for pair in pairs))
    assert run("--url", url, stdin=lines).stdout == done.stdout


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": b"bytes"}, "in.parquet: cannot be read: Object of type bytes is not JSON serializable"),
        ({"note": "a"}, "in.parquet:1: has the keys none; give one of text"),
        (None, "in.parquet: cannot be read: Parquet magic bytes not found"),
    ],
)
def test_a_table_that_cannot_be_read_is_one_line_and_exit_2(tmp_path, row, message):
    source = tmp_path / "in.parquet"
    source.write_bytes(b"neither rows nor columns")
    if row is not None:
        parquet.write_table(pyarrow.Table.from_pylist([row]), source)
    assert_one_line_of_error(run(str(source), "--url", "http://127.0.0.1:9"), 2, message)


def test_a_table_without_pyarrow_is_one_line_and_exit_2(tmp_path):
    (tmp_path / "pyarrow.py").write_text("raise ModuleNotFoundError(\"No module named 'pyarrow'\", name='pyarrow')")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    done = run("in.parquet", "--url", "http://127.0.0.1:9", PYTHONPATH=path)
    assert_one_line_of_error(done, 2, "in.parquet: parquet needs pyarrow: pip install pyarrow; or give JSONL")


def test_a_failed_run_leaves_the_old_output_as_it_was_and_keeps_what_is_scored(url, tmp_path):
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_bytes(jsonl("a") * 1000 + b"oops\n")
    target.write_text("old")
    done = run(str(source), "-o", str(target), "--url", url)
    hint, error = done.stderr.decode().splitlines()
    assert hint == "plaudit-score: the scores so far are kept; continue with --resume"
    assert error.startswith(f"plaudit-score: error: {source}:1001: not JSON")
    assert done.returncode == 2
    assert target.read_text() == "old"
    assert {path.name for path in tmp_path.iterdir()} - {"in.jsonl", "out.jsonl"} == {
        "out.jsonl.part",
        "out.jsonl.part.journal",
    }


def test_a_run_that_failed_before_its_first_score_leaves_nothing(url, tmp_path):
    done = run("-o", str(tmp_path / "out.jsonl"), "--url", url, stdin=b"oops\n")
    assert_one_line_of_error(done, 2, "stdin:1: not JSON")
    assert list(tmp_path.iterdir()) == []


def test_a_device_as_output_is_written_and_not_replaced(url):
    done = run("-o", "/dev/null", "--url", url, stdin=jsonl("a"))
    assert (done.returncode, done.stderr) == (0, b"")


def test_pairs_get_both_scores_and_a_summary(url):
    pairs = [("aa", "a"), ("a", "aa"), ("aaa", "a"), ("a" * 101, "a")]
    lines = jsonl(*[{"chosen": chosen, "rejected": rejected} for chosen, rejected in pairs])
    done = run("--url", url, "--allow-failures", stdin=lines)
    assert done.returncode == 0
    first, *_, last = read(done.stdout)
    assert (first["chosen"]["score"], first["rejected"]["score"]) == (2.0, 1.0)
    assert (last["chosen"]["status"], last["chosen"]["score"]) == ("too_long", None)
    *histogram, summary = done.stderr.decode().splitlines()
    assert summary == "plaudit-score: pairs: 4, scored: 3, left out: too_long 1, pair accuracy: 0.6667"
    head, *bins = histogram
    assert head.split() == ["score", "from", "chosen", "count", "rejected", "count"]
    counts = [[word for word in line.split() if not word.startswith("#")] for line in bins]
    assert sum(int(chosen) for _, chosen, _ in counts) == 3
    assert sum(int(rejected) for _, _, rejected in counts) == 4
    assert counts[0] == ["1", "1", "3"]


def test_quiet_leaves_the_histogram_out(url):
    done = run("--url", url, "--quiet", stdin=jsonl({"chosen": "aa", "rejected": "a"}))
    assert done.stderr.decode() == "plaudit-score: pairs: 1, scored: 1, pair accuracy: 1.0000\n"


def test_a_terminal_shows_why_nothing_comes():
    terminal, stderr = pty.openpty()
    command = [*COMMAND, "--url", "http://127.0.0.1:9", "--timeout-s", "0.3"]
    done = subprocess.run(command, input=jsonl("a"), stdout=subprocess.PIPE, stderr=stderr)
    os.close(stderr)
    shown = b""
    with contextlib.suppress(OSError):  # the end of a terminal
        while chunk := os.read(terminal, 65536):
            shown += chunk
    os.close(terminal)
    assert done.returncode == 1
    assert b"plaudit-score: ejected http://127.0.0.1:9 at 127.0.0.1: " in shown
    assert b"Connection refused; check that the service runs there" in shown


# Best of n


def test_best_of_adds_the_completion_with_the_highest_score(url):
    group = {"id": 7, "prompt": "p", "completions": ["a", "ccc", "bb", "ddd"]}
    chat = {"messages": [{"role": "user", "content": "q"}], "completions": ["x"]}
    done = run("--url", url, "--best-of", stdin=jsonl(group, chat))
    assert (done.returncode, done.stderr) == (0, b"")
    best, of_chat = read(done.stdout)
    results = best.pop("results")
    assert best == {"line": 1, "id": 7, "prompt": "p", "completion": "ccc", "index": 1, "score": 4.0}
    assert [result["score"] for result in results] == [2.0, 4.0, 3.0, 4.0]
    assert (of_chat["messages"], of_chat["completion"]) == (chat["messages"], "x")


def test_best_of_a_group_without_any_score_is_null_and_exit_1(url):
    done = run("--url", url, "--best-of", stdin=jsonl({"prompt": "p", "completions": ["a" * 101]}))
    (line,) = read(done.stdout)
    assert (line["completion"], line["index"], line["score"]) == (None, None, None)
    assert done.returncode == 1


def test_best_of_needs_groups(url):
    assert_one_line_of_error(run("--url", url, "--best-of", stdin=jsonl("a")), 2, "stdin:1: no completions to choose")


# Resuming


class Interruptible(FakeService):
    """Counts what it scores; from a number of requests on it answers nothing but 422."""

    def __init__(self, limit):
        super().__init__(self.score)
        self.limit = limit
        self.scored = []
        self.answer_whole, self.answer = self.answer, self.answer_or_interrupt

    def score(self, item):
        self.scored.append(item["text"])
        return length(item)

    def answer_or_interrupt(self, request):
        if request.method == "POST" and len(self.scored) >= self.limit:
            return json_response({"detail": "interrupted"}, 422)
        return self.answer_whole(request)


TEXTS = [f"{number:03} {'a' * (number % 9)}" for number in range(300)]


@pytest.fixture
def interrupted(serve, tmp_path):
    """A run that ended in the middle: its service, its arguments, and its files."""
    service = Interruptible(limit=150)
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_bytes(b"\n" + jsonl(*TEXTS))
    arguments = [str(source), "-o", str(target), "--url", serve(service), "--batch-size", "10"]
    assert run(*arguments).returncode == 2
    service.limit = 10**9
    return service, arguments, source, target


def test_a_run_is_resumed_without_scoring_what_is_written_again(interrupted):
    service, arguments, _, target = interrupted
    written = read(Path(f"{target}.part").read_bytes())
    before = len(service.scored)
    done = run(*arguments, "--resume")
    assert (done.returncode, done.stderr) == (0, b"")
    assert 0 < len(written) <= 150
    assert len(service.scored) - before == 300 - len(written)
    assert [answer["score"] for answer in read(target.read_bytes())] == [float(len(text)) for text in TEXTS]
    assert [answer["line"] for answer in read(target.read_bytes())] == list(range(2, 302))
    assert {path.name for path in target.parent.iterdir()} == {"in.jsonl", "out.jsonl"}


def test_a_half_written_line_is_scored_again_and_whole_ones_beyond_the_journal_are_not(interrupted):
    service, arguments, _, target = interrupted
    part, journal = Path(f"{target}.part"), Path(f"{target}.part.journal")
    journal.write_bytes(b"".join(journal.read_bytes().splitlines(keepends=True)[:3]) + b'{"line": 3')
    part.write_bytes(part.read_bytes()[:-5])
    num_whole = part.read_bytes().count(b"\n")
    before = len(service.scored)
    assert run(*arguments, "--resume").returncode == 0
    assert len(service.scored) - before == 300 - num_whole
    assert [answer["score"] for answer in read(target.read_bytes())] == [float(len(text)) for text in TEXTS]


def test_a_run_that_was_killed_scores_at_most_the_requests_in_flight_again(serve, tmp_path):
    class Deadly(Interruptible):
        process = None

        def answer_or_interrupt(self, request):
            if self.process and len(self.scored) >= self.limit:
                self.process.kill()
            return self.answer_whole(request)

    service = Deadly(limit=200)
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    arguments = [str(source), "-o", str(target), "--url", serve(service), "--batch-size", "2"]
    os.mkfifo(source)
    with subprocess.Popen([*COMMAND, *arguments], stderr=subprocess.PIPE) as process:
        service.process = process
        with source.open("wb") as file, contextlib.suppress(BrokenPipeError):
            file.write(jsonl(*TEXTS))
        assert process.wait() == -signal.SIGKILL
    written = Path(f"{target}.part").read_bytes().count(b"\n")
    service.process = None
    service.scored.clear()
    source.unlink()
    source.write_bytes(jsonl(*TEXTS))
    assert run(*arguments, "--resume").returncode == 0
    assert 0 < written < 300
    assert len(service.scored) == 300 - written
    assert [answer["score"] for answer in read(target.read_bytes())] == [float(len(text)) for text in TEXTS]


def test_the_summary_of_a_resumed_run_counts_all_pairs(serve, tmp_path):
    service = Interruptible(limit=20)
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_bytes(jsonl(*({"chosen": "aa", "rejected": "a" * (1 + number % 2)} for number in range(40))))
    arguments = [str(source), "-o", str(target), "--url", serve(service), "--batch-size", "4", "--quiet"]
    assert run(*arguments).returncode == 2
    service.limit = 10**9
    done = run(*arguments, "--resume")
    assert done.stderr.decode() == "plaudit-score: pairs: 40, scored: 40, pair accuracy: 0.5000\n"


def test_an_interrupted_run_is_neither_overwritten_nor_continued_with_something_else(interrupted, serve):
    service, arguments, source, target = interrupted
    scored = len(service.scored)
    assert_one_line_of_error(
        run(*arguments), 2, f"{target}.part: left by an interrupted run; continue that run with --resume"
    )
    done = run(*arguments, "--resume", "--truncation", "left")
    assert_one_line_of_error(done, 2, "left by a run with other options")
    original = source.read_bytes()
    source.write_bytes(original.replace(b"001", b"xxx"))
    done = run(*arguments, "--resume")
    assert "the input differs from the one that the interrupted run read" in done.stderr.decode()
    assert done.returncode == 2
    source.write_bytes(original)
    assert len(service.scored) == scored
    other = serve(FakeService(length, fingerprint="sha256:other"))
    done = run(*arguments, "--resume", "--url", other)
    assert "sha256:other" in done.stderr.decode()
    assert done.returncode == 1
    assert run(*arguments, "--resume").returncode == 0


def test_a_damaged_journal_is_one_line_and_exit_2(interrupted):
    _, arguments, _, target = interrupted
    Path(f"{target}.part.journal").unlink()
    assert_one_line_of_error(
        run(*arguments, "--resume"),
        2,
        "out.jsonl.part.journal: this file is missing, so the run cannot be continued; delete",
    )


def test_an_output_that_another_run_is_writing_is_refused(interrupted):
    _, arguments, _, target = interrupted
    with Path(f"{target}.part.journal").open("a") as journal:
        fcntl.flock(journal, fcntl.LOCK_EX)
        assert_one_line_of_error(run(*arguments, "--resume"), 2, "another run is writing this file")


def test_resuming_without_an_interrupted_run_begins_one_and_needs_a_file(url, tmp_path):
    target = tmp_path / "out.jsonl"
    assert run("-o", str(target), "--url", url, "--resume", stdin=jsonl("a")).returncode == 0
    assert len(read(target.read_bytes())) == 1
    assert_one_line_of_error(
        run("--url", url, "--resume", stdin=jsonl("a")), 2, "--resume: output to - cannot be continued"
    )


def test_failed_sequences_are_written_and_are_exit_1_unless_allowed(url, tmp_path):
    target = tmp_path / "out.jsonl"
    arguments = ["-o", str(target), "--url", url]
    lines = jsonl("a", "a" * 101)
    assert_one_line_of_error(run(*arguments, stdin=lines), 1, "1 of 2 sequences have no score: too_long 1; accept")
    assert [answer["status"] for answer in read(target.read_bytes())] == ["ok", "too_long"]
    assert run(*arguments, "--allow-failures", stdin=lines).returncode == 0
    assert run(*arguments, stdin=lines, PLAUDIT_ALLOW_FAILURES="1").returncode == 0


def test_options_reach_the_service_from_flags_and_from_the_environment(url, service, tmp_path):
    key_file = tmp_path / "key"
    key_file.write_text("\nsecret\nanother of the service's\n", encoding="utf-8-sig")
    flags = ["--url", url, "--model", "fake", "--truncation", "left", "--raw", "--timeout-s", "9"]
    flags += ["--along", "tokens", "--explain"]
    run(*flags, "--api-key-file", str(key_file), stdin=jsonl("a"), PLAUDIT_API_KEY="other", PLAUDIT_MODEL="other")
    settings = {"URL": url, "MODEL": "fake", "TRUNCATION": "left", "RAW": "true", "TIMEOUT_S": "9", "API_KEY": "secret"}
    settings |= {"ALONG": "tokens", "EXPLAIN": "1"}
    run(stdin=jsonl("a"), **{f"PLAUDIT_{name}": value for name, value in settings.items()})
    by_flag, by_environment = (request for request in service.requests if request.method == "POST")
    for request in (by_flag, by_environment):
        options = {"model": "fake", "truncation": "left", "raw": True, "along": "tokens", "explain": True}
        assert json.loads(request.body) == {"items": [{"text": "a"}]} | options
        assert request.headers["Authorization"] == "Bearer secret"
        assert 8.0 < float(request.headers["X-Request-Timeout-S"]) <= 9.0


@pytest.mark.parametrize("lines", [jsonl("a"), b"\n" + jsonl("a")])
def test_an_input_may_begin_with_a_byte_order_mark(url, lines):
    done = run("--url", url, stdin=b"\xef\xbb\xbf" + lines)
    assert (done.returncode, [answer["score"] for answer in read(done.stdout)]) == (0, [1.0])


def test_an_empty_input_is_an_empty_output_and_no_request(url, service):
    done = run("--url", url)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert service.requests == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "url: none given"),
        (["--url", "nowhere"], "url 'nowhere': is not the base URL of a service"),
        (["--url", "http://a", "--bogus"], "unrecognized arguments: --bogus"),
        (
            ["--url", "http://a", "--timeout-s", "soon"],
            "argument --timeout-s: got 'soon'; give a number of seconds above 0",
        ),
        (["--url", "http://a", "--timeout-s", "0"], "argument --timeout-s: got '0'"),
        (["--url", "http://a", "--batch-size", "0"], "argument --batch-size: got '0'; give a whole number above 0"),
        (["--url", "http://a", "--truncation", "mid"], "argument --truncation: got 'mid'; give one of error, left"),
        (["--url", "http://a", "--along", "words"], "argument --along: got 'words'; give one of none, steps, tokens"),
        (["--url", "http://a", "missing.jsonl"], "missing.jsonl: cannot be read: No such file or directory"),
        (["--url", "http://a", "missing.jsonl.gz"], "missing.jsonl.gz: cannot be read: No such file or directory"),
        (["--url", "http://a", "/"], "/: cannot be read: Is a directory"),
        (["--url", "http://a", "-o", "/nowhere/out"], "/nowhere/out: cannot be written: No such file or directory"),
        (["--url", "http://a", "-o", "/"], "/: cannot be written: Is a directory"),
        (["--url", "http://a", "--api-key-file", "missing"], "missing: API key cannot be read: "),
        (["--url", "http://a", "--api-key-file", "/dev/null"], "/dev/null: contains no API key"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_2(arguments, message):
    assert_one_line_of_error(run(*arguments), 2, message)


@pytest.mark.parametrize(
    ("variable", "message"),
    [
        ({"PLAUDIT_TRUNCATION": "mid"}, "argument --truncation: got 'mid'"),
        ({"PLAUDIT_BATCH_SIZE": "many"}, "argument --batch-size: got 'many'"),
        ({"PLAUDIT_RAW": "maybe"}, "PLAUDIT_RAW: got 'maybe'; give 1 or 0"),
    ],
)
def test_a_wrong_environment_variable_is_one_line_and_exit_2(variable, message):
    assert_one_line_of_error(run("--url", "http://a", **variable), 2, message)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"plain text", "Not a gzipped file"), (gzip.compress(b'"a"\n' * 99, mtime=0)[:-9], "cannot be read: ")],
)
def test_a_damaged_compressed_file_is_one_line_and_exit_2(tmp_path, content, message):
    source = tmp_path / "in.jsonl.gz"
    source.write_bytes(content)
    assert_one_line_of_error(run(str(source), "--url", "http://127.0.0.1:9"), 2, message)


def test_a_line_of_standard_input_is_named_too():
    assert_one_line_of_error(run("--url", "http://127.0.0.1:9", stdin=b"\n{"), 2, "stdin:2: not JSON")


def test_an_unreachable_server_is_one_line_and_exit_1():
    done = run("--url", "http://127.0.0.1:9", "--timeout-s", "0.3", stdin=jsonl("a"))
    assert_one_line_of_error(done, 1, "http://127.0.0.1:9/info")


def test_an_unusable_answer_is_one_line_and_exit_1(serve):
    url = serve(FakeTransport(lambda request: HttpResponse(200, {"content-type": "text/html"}, b"<html>")))
    assert_one_line_of_error(run("--url", url, stdin=jsonl("a")), 1, "not JSON (text/html)")


def test_a_request_that_the_service_refuses_is_one_line_and_exit_2(url):
    done = run("--url", url, "--model", "other", stdin=jsonl("a"))
    assert_one_line_of_error(done, 2, "status 404: model: asked for other, loaded is fake")


def test_a_closed_output_is_one_line_and_no_stack_trace(url):
    command = [*COMMAND, "--url", url]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        process.stdin.write(jsonl("a"))
        process.stdin.close()
        assert process.stderr.read() == b"plaudit-score: error: output: Broken pipe\n"
    assert process.returncode == 1


def test_a_full_disk_is_one_line_and_exit_1(url):
    to_file = run("-o", "/dev/full", "--url", url, stdin=jsonl("a"))
    assert_one_line_of_error(to_file, 1, "output: No space left on device")
    with Path("/dev/full").open("wb") as full:
        to_stdout = subprocess.run([*COMMAND, "--url", url], input=jsonl("a"), stdout=full, stderr=subprocess.PIPE)
    assert_one_line_of_error(to_stdout, 1, "output: No space left on device")


@pytest.mark.parametrize("at", ["reading", "waiting"])
def test_an_interrupt_is_one_line_and_exit_130(serve, tmp_path, at):
    arrived, stop = threading.Event(), threading.Event()

    def answer(request):
        arrived.set()
        if at == "waiting":
            stop.wait(30)
        return FakeService(length).answer(request)

    target = tmp_path / "out.jsonl"
    command = [*COMMAND, "--url", serve(FakeTransport(answer)), "-o", str(target), "--batch-size", "1"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdin.write(jsonl("a", "b"))  # the end of the input does not come
        process.stdin.flush()
        if at == "waiting":
            process.stdin.close()
        assert arrived.wait(30)
        process.send_signal(signal.SIGINT)
        assert process.stderr.read() == b"plaudit-score: interrupted\n"
        assert process.wait() == 130
    stop.set()
    assert list(tmp_path.iterdir()) == []


def test_help_says_units_defaults_and_variables():
    done = run("--help")
    text = " ".join(done.stdout.decode().split())
    assert done.returncode == 0
    assert "in seconds (default: 300) [PLAUDIT_TIMEOUT_S]" in text
    assert "sequences per request (default: 64) [PLAUDIT_BATCH_SIZE]" in text


@pytest.mark.slow
def test_a_million_lines_are_scored_in_flat_memory(serve, tmp_path):
    def answer(request):
        if request.method == "GET":
            return json_response({"limits": {"max_sequences_per_request": 1024, "max_body_bytes": 2**25}})
        count = request.body.count(b'{"text"')
        result = {"status": "ok", "score": 0.5, "num_tokens": 1, "truncated": False}
        return json_response({"model": "m", "fingerprint": "f", "engine": "e", "results": [result] * count})

    url = serve(FakeTransport(answer))
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"

    def measure(num_lines):
        """The largest memory of the command, in bytes."""
        with source.open("w") as file:
            file.writelines(f'"text number {number}"\n' for number in range(num_lines))
        command = [*COMMAND, str(source), "-o", str(target), "--url", url, "--batch-size", "500"]
        process = subprocess.Popen(command)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        assert process.returncode == 0
        with target.open() as file:
            assert sum(1 for _ in file) == num_lines
        return usage.ru_maxrss * 1024

    assert measure(1_000_000) - measure(20_000) < 16 * 2**20
