"""Every command that a page names can be typed: its subcommand, its options, targets of make, files, modules."""

import os
import re
import shlex
import subprocess
import sys
import tomllib
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from pages import MAKE_TARGETS, PAGES, ROOT, blocks, every_page, prose

COMMANDS = sorted(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"])
# In a text, as in a shell: a path may stand before the command, and it ends where the shell's own signs begin.
_CALL = re.compile(rf"(?:^|[\s(`/])({'|'.join(COMMANDS)}) ([^\n`|>&;]*)", re.MULTILINE)
# A file that pytest or locust runs has their options, not its own.
_PROGRAM = re.compile(r"(?<![\w/.])(?<!-f )((?:loadtests|tests|deploy|examples)/(?!\S*test_)[\w/]+\.py)([^\n`|>&;]*)")


def code(page):
    """What a page shows as code, in blocks and in lines; a line that goes on is one line."""
    text = page.read_text()
    in_lines = (" ".join(each.split()) for each in re.findall(r"`([^`]+)`", prose(text)))
    return "\n".join([*blocks(text), *in_lines]).replace("\\\n", " ")


def words(arguments):
    """A call's arguments as the shell reads them; quotes that a text does not close stay as they are."""
    try:
        return shlex.split(arguments, comments=True)
    except ValueError:
        return arguments.split()


@cache
def help_of(*command):
    """What --help prints, on lines that do not end before it says so."""
    name, *subcommand = command
    asked = [str(Path(sys.executable).parent / name), *subcommand, "--help"]
    environment = os.environ | {"COLUMNS": "1000"}
    return subprocess.run(asked, capture_output=True, text=True, check=True, env=environment).stdout


def subcommands(name):
    """Of a command, as its help lists them."""
    help_text = help_of(name)
    return re.findall(r"^    ([a-z]+)(?:  |$)", help_text, re.MULTILINE) if " COMMAND ..." in help_text else []


@every_page
def test_every_command_has_the_subcommand_and_the_options_that_a_page_names(page):
    """A text may name an option of a subcommand without the subcommand, as in "plaudit-export --name"."""
    for name, arguments in _CALL.findall(code(page)):
        first, *_ = given = words(arguments) or [""]
        asked = subcommands(name)
        if asked and re.match("[a-z]", first):
            assert first in asked, f"{name} {arguments}"
            asked = [first]
        known = help_of(name) + "".join(help_of(name, each) for each in asked)
        for option in (word.partition("=")[0] for word in given if re.match("--[a-z]", word)):
            assert re.search(rf"(?<![\w-]){option}(?![\w-])", known), f"{name} {arguments}: no {option}"


@every_page
def test_every_target_of_make_that_a_page_names_is_there(page):
    assert set(re.findall(r"(?:^|\s)make ([a-z][a-z0-9-]*)", code(page), re.MULTILINE)) <= MAKE_TARGETS


@every_page
def test_every_program_that_a_page_runs_is_there_with_its_options(page):
    for program, arguments in _PROGRAM.findall(code(page)):
        source = (ROOT / program).read_text()
        for option in set(re.findall(r"(?<!\S)--[a-z][\w-]*", arguments)) - {"--help"}:
            assert f'"{option}"' in source, f"{program} {arguments}: no {option}"


@every_page
def test_every_module_that_a_page_runs_is_there(page):
    modules = re.findall(r"python -m (plaudit_[\w.]+)", code(page))
    assert page.name == "CHANGELOG.md" or all(map(find_spec, modules)), modules  # that page also names what is gone


def test_commands_are_found_in_blocks_and_lines():
    calls = [call for page in PAGES for call in _CALL.findall(code(page))]
    assert {name for name, _ in calls} == set(COMMANDS)
    assert len(calls) > 100
