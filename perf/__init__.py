"""Measurements of the operator: ``python -m perf``."""

from collections.abc import Iterable, Sequence

EXIT_OK, EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED = 0, 1, 2, 130


class UsageError(ValueError):
    """An argument of the command line is wrong: the message names it, its value and what was expected."""


def chosen(option: str, names: Sequence[str] | None, known: Iterable[str]) -> list[str]:
    """The known names among ``names``, in their own order; all of them for None.

    Raises:
        UsageError: a name is unknown.
    """
    known = list(known)
    for name in names or ():
        if name not in known:
            raise UsageError(f"{option}: unknown name {name!r}; available: {', '.join(known)}")
    return [name for name in known if names is None or name in names]
