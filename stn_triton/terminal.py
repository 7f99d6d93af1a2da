"""Parsers, exit codes and the handling of errors, shared by all command lines."""

from __future__ import annotations

import argparse
import errno
import os
import sys
from collections.abc import Callable, Iterable, Sequence

EXIT_OK, EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED, EXIT_PIPE = 0, 1, 2, 130, 141


class UsageError(ValueError):
    """An argument or a file is wrong: the message names it, its value and what was expected."""


class Parser(argparse.ArgumentParser):
    """A parser that does not reflow its texts. ``args.parser`` is the parser of the given command."""

    def __init__(self, **options) -> None:
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, **options)
        self.set_defaults(parser=self)

    def parse(self, argv: Sequence[str] | None) -> argparse.Namespace:
        """Parse arguments. Exits after help, for a wrong argument, or if no command is given."""
        args, unknown = self.parse_known_args(argv)
        if unknown:
            args.parser.error(f"unrecognized arguments: {' '.join(unknown)}")
        if getattr(args, "command", "") is None:
            self.print_help(sys.stderr)
            sys.exit(EXIT_USAGE)
        return args


def add_command(commands, name: str, summary: str, description: str, examples: str) -> Parser:
    """Add a command to a parser's ``commands``."""
    return commands.add_parser(name, help=summary, description=description, epilog=f"examples:\n{examples}")


def add_device(parser: Parser) -> None:
    """Add ``--device``, for ``environment.choose_device``."""
    parser.add_argument("--device", help="cpu, cuda or cuda:N (default: cuda if there is one, else cpu)")


def add_json(parser) -> None:
    """Add ``--json``."""
    parser.add_argument("--json", action="store_true", help="print JSON to standard output, not text")


def chosen(option: str, names: Sequence[str] | None, known: Iterable[str]) -> list[str]:
    """Select ``names`` from the known ones, in the order of ``known``; None selects all.

    Raises:
        UsageError: a name is unknown.
    """
    known = list(known)
    for name in names or ():
        if name not in known:
            raise UsageError(f"{option}: unknown name {name!r}; available: {', '.join(known)}")
    return [name for name in known if names is None or name in names]


def run(
    args: argparse.Namespace,
    main: Callable[[argparse.Namespace], int],
    *,
    extra: str = "",
    interrupted: str = "interrupted",
    closed: int = EXIT_FAILED,
) -> int:
    """Call ``main`` with the parsed arguments and return its exit code.

    Args:
        args: result of ``Parser.parse``.
        main: function that does the work. A UsageError is printed like an error of the parser.
        extra: the extra of the package that installs the imports of ``main``.
        interrupted: message for Ctrl-C.
        closed: the exit code if the reader of the output closes it.
    """
    try:
        return main(args)
    except UsageError as error:
        args.parser.error(str(error))
    except ModuleNotFoundError as error:
        if not extra or (error.name or "").split(".")[0] in ("perf", "stn_triton"):
            raise
        print(f"{error.name} is missing: python -m pip install -e '.[{extra}]'", file=sys.stderr)
        return EXIT_FAILED
    except OSError as error:
        if not isinstance(error, BrokenPipeError) and error.errno != errno.ENOSPC:
            raise
        if error.filename is None:  # Python must not flush stdout at exit, which would fail again
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            return closed
        where = "the output" if error.filename is None else error.filename
        print(f"error: {args.command}: {where} cannot be written: {error.strerror}", file=sys.stderr)
        return EXIT_FAILED
    except KeyboardInterrupt:
        print(f"\n{interrupted}", file=sys.stderr)
        return EXIT_INTERRUPTED
