"""How every command of the service and the exporter ends."""

import importlib.metadata
import re
import signal
import subprocess
import sys

import pytest

from plaudit_export.errors import ExportError, ParityError, SourceError
from plaudit_service.command_line import Parser, run
from plaudit_service.errors import BundleError, ServiceError, SettingsError


def ends_with(error, capsys):
    """The exit code and stderr of a command that raises."""

    def body():
        raise error

    return run("plaudit-x", body, extra="some"), capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "exit_code"),
    [
        (ServiceError("no\nway"), 1),
        (BundleError("no way"), 2),
        (SettingsError("no way"), 2),
        (ExportError("no way"), 1),
        (SourceError("no\nway"), 2),
        (ParityError("no way", "a table"), 1),
    ],
)
def test_an_error_that_owns_an_exit_code_is_one_line(error, exit_code, capsys):
    assert ends_with(error, capsys) == (exit_code, "plaudit-x: error: no way\n")


def test_a_package_that_is_not_installed_is_named_with_the_extra_that_brings_it(capsys):
    code, line = ends_with(ModuleNotFoundError("No module", name="numpy"), capsys)
    assert (code, line) == (2, "plaudit-x: error: numpy is not installed; pip install 'plaudit[some]'\n")


def test_an_interrupt_is_130(capsys):
    assert ends_with(KeyboardInterrupt(), capsys) == (130, "plaudit-x: interrupted\n")


def test_another_error_is_a_bug_in_one_line_that_says_where(capsys):
    code, line = ends_with(ZeroDivisionError("no\nway"), capsys)
    assert code == 1
    where = r"\(test_\w+\.py:\d+\)"
    assert re.fullmatch(rf"plaudit-x: error: internal error: .*: no way {where}; please report it with .*\n", line)


def test_the_stack_trace_of_a_bug_is_shown_to_who_asks_for_it(capsys, monkeypatch):
    monkeypatch.setenv("PLAUDIT_TRACEBACK", "1")
    _, error = ends_with(ZeroDivisionError("no way"), capsys)
    assert "Traceback" in error


def test_a_command_and_its_subcommands_tell_their_version(capsys):
    parser = Parser(prog="plaudit-x")
    parser.add_subparsers(required=True).add_parser("do").add_argument("what")
    for argv in (["--version"], ["do", "--version"]):
        with pytest.raises(SystemExit) as ended:
            parser.parse_args(argv)
        assert ended.value.code == 0
        assert capsys.readouterr().out == f"plaudit-x {importlib.metadata.version('plaudit')}\n"


def test_wrong_usage_is_one_line_that_names_the_help_of_the_subcommand(capsys):
    parser = Parser(prog="plaudit-x")
    parser.add_subparsers().add_parser("do").add_argument("what")
    with pytest.raises(SystemExit) as ended:
        parser.parse_args(["do", "this", "and\nthat"])
    assert ended.value.code == 2
    expected = "plaudit-x: error: unrecognized arguments: and that; see plaudit-x --help\n"
    assert capsys.readouterr().err == expected
    with pytest.raises(SystemExit):
        parser.parse_args(["do"])
    assert capsys.readouterr().err.endswith("required: what; see plaudit-x do --help\n")


SIGNALLED = """
import os, signal, sys, threading
from plaudit_service.command_line import interruptible, run

def signalled(number):
    try:
        signal.raise_signal(number)
    except BaseException:  # as C code does, of a package that is imported
        return 0

def raised(number):
    with interruptible():
        try:
            signal.raise_signal(number)
        finally:
            print("cleared away")

class Dropping:
    def __init__(self, number):
        self.number = number

    def __del__(self):
        signal.raise_signal(self.number)

def dropped(number):
    with interruptible():
        Dropping(number)  # Python drops what is raised in its destructor
        threading.Event().wait(60)

sys.exit(run("plaudit-x", lambda: {body}({number}), extra="some"))
"""


@pytest.mark.parametrize(("body", "out"), [("signalled", ""), ("raised", "cleared away\n"), ("dropped", "")])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_command_at_once_until_there_is_something_to_clear_away(body, out, number):
    program = SIGNALLED.format(body=body, number=int(number))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, out, "plaudit-x: interrupted\n")


def test_a_command_leaves_the_handlers_of_signals_as_they_were(capsys):
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    ends_with(KeyboardInterrupt(), capsys)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_long_message_keeps_its_beginning_and_its_end_and_is_printable(capsys):
    _, line = ends_with(ValueError(f"a\0b \udcff {'9' * 5000}"), capsys)
    assert "a b \\udcff 999" in line
    assert line.endswith("with the output of PLAUDIT_TRACEBACK=1\n")
    assert len(line) < 1000
