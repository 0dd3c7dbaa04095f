"""The exceptions of the demo; their message is the one line that the user reads."""


class DemoError(Exception):
    """The demo failed."""

    exit_code = 1


class OutputError(DemoError):
    """The output directory that the user gave cannot be used."""

    exit_code = 2


class UsageError(DemoError):
    """An option of the studies names what is not there."""

    exit_code = 2
