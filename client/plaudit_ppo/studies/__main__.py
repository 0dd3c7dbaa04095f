"""`python -m plaudit_ppo.studies`: the command of `cli.py`."""

import sys

from plaudit_ppo.studies.cli import main

sys.exit(main())
