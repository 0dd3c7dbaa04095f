"""`python -m plaudit_demo.steps`: the command of `cli.py`."""

import sys

from plaudit_demo.steps.cli import main

sys.exit(main())
