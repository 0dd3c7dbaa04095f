"""`python -m plaudit_ppo`, which is what `torchrun -m plaudit_ppo train ...` runs in every process."""

import sys

from plaudit_ppo.cli import main

if __name__ == "__main__":
    sys.exit(main())
