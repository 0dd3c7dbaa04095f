"""`python -m plaudit_ppo`, which is what `torchrun -m plaudit_ppo train ...` runs in every process."""

from plaudit_ppo.cli import command

if __name__ == "__main__":
    command()
