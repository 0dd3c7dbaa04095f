"""`python -m plaudit_demo.studies`: the command of `cli.py`."""

import sys

from plaudit_demo.studies.cli import main

sys.exit(main())
