"""The command that an error message names, run as the user would run it."""

import subprocess
import sys


def run_conversion(message, directory):
    """Run the `python -c "..."` of a message about pickled weights, there."""
    code = message.partition('python -c "')[2].removesuffix('"')
    assert "\n" not in code
    subprocess.run([sys.executable, "-c", code], cwd=directory, check=True, timeout=120)
