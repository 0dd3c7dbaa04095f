"""Runs commands in forks of one process that has imported what they need, which takes seconds.

    python forked_commands.py FOLDER < cases.json > results.json

A case is {"command": [name, arguments ...], "environment": {...}, "stdout": file or null}; a result is [exit code,
standard error]. Commands run in FOLDER.
"""

import json
import os
import sys
import tempfile
from pathlib import Path

import matplotlib.pyplot  # noqa: F401
import onnxruntime  # noqa: F401
import onnxscript  # noqa: F401
import torch
import transformers.models.bert.modeling_bert
import transformers.models.llama.modeling_llama  # noqa: F401

import plaudit_client.cli
import plaudit_export.cli
import plaudit_export.exporter
import plaudit_ppo.cli
import plaudit_ppo.trainer

MAINS = {
    "plaudit-export": plaudit_export.cli.main,
    "plaudit-ppo": plaudit_ppo.cli.main,
    "plaudit-score": plaudit_client.cli.main,
}


def run(case: dict, folder: Path) -> tuple[int, str]:
    """The exit code and standard error of a case."""
    with tempfile.TemporaryFile() as said:
        child = os.fork()
        if child == 0:
            os._exit(_become(case, folder, said.fileno()))
        exit_code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        said.seek(0)
        return exit_code, said.read().decode()


def _become(case: dict, folder: Path, said: int) -> int:
    """What the interpreter does with a command; an exception that leaves it is -1 and a stack trace."""
    os.chdir(folder)
    os.environ.update(case["environment"])
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(os.open(case["stdout"] or os.devnull, os.O_WRONLY), 1)
    os.dup2(said, 2)
    name, *arguments = case["command"]
    sys.argv = case["command"]
    try:
        code = MAINS[name](arguments)
        sys.stdout.flush()
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
    except BaseException:  # noqa: BLE001  that is what is looked for
        sys.excepthook(*sys.exc_info())
        code = 255
    sys.stderr.flush()
    return code


if __name__ == "__main__":
    torch.set_num_threads(1)
    json.dump([run(case, Path(sys.argv[1])) for case in json.load(sys.stdin)], sys.stdout)
