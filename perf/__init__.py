"""Measurements of the operator: ``python -m perf``."""

EXIT_OK, EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED = 0, 1, 2, 130


class UsageError(ValueError):
    """An argument of the command line is wrong: the message names it, its value and what was expected."""
