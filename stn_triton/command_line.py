"""The command line: commands, their arguments and their exit codes."""

from __future__ import annotations

import importlib
from collections.abc import Sequence

from stn_triton.terminal import EXIT_PIPE, Parser, add_command, add_device, add_json, run

DESCRIPTION = """\
Check and describe this installation of stn_triton.

  check  test whether the operator is right here: a table of PASS and FAIL
  info   print the environment, the table of block sizes in use, what is supported
"""

EPILOG = """\
examples:
  python -m stn_triton check          everything, in under a minute on a CPU
  python -m stn_triton check --quick  in seconds
  python -m stn_triton info           facts for a bug report

exit codes, of every command:
  0    done; for check: every row passed
  1    a row of check or something else failed; the output says what
  2    a wrong argument, or no command
  130  interrupted with Ctrl-C
  141  the reader of the output closed it
"""
_MODULES = {"check": "stn_triton.check.command", "info": "stn_triton.info"}


def build_parser() -> Parser:
    """The parser of all commands."""
    parser = Parser(prog="python -m stn_triton", description=DESCRIPTION, epilog=EPILOG)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    for add in (_check, _info):
        add(commands)
    return parser


def _check(commands) -> None:
    parser = add_command(
        commands,
        "check",
        "test whether the operator is right on this machine",
        """\
Compare results and gradients of the operator with an independent computation in
fp64, over dtypes, layouts, modes, paddings, sizes and maps, images and volumes;
compare it with PyTorch's own pair; check the identity, adjoints and repetitions.
Each line has the number of comparisons, the worst error, the largest allowed
error, and PASS or FAIL; a failure also has the arguments that reproduce it.

On a GPU the kernels run with the block sizes that calls use, without a search
for others. Compiling them the first time takes minutes. On a CPU the plain
PyTorch path runs, unless --interpret is given.
""",
        """\
  python -m stn_triton check
  python -m stn_triton check --quick --json > check.json
  python -m stn_triton check --only splines determinism  these rows of the table
  python -m stn_triton check --device cpu       the plain PyTorch path
  python -m stn_triton check --quick --interpret --only identity
""",
    )
    add_device(parser)
    add_json(parser)
    parser.add_argument("--quick", action="store_true", help="fewer cases of every row, in seconds")
    parser.add_argument(
        "--only", nargs="+", metavar="WORD", help="only rows whose names contain one of these words"
    )
    parser.add_argument(
        "--interpret",
        action="store_true",
        help="on a CPU, run the kernels in Triton's interpreter, which needs NumPy: very slow, so add "
        "--quick and --only",
    )


def _info(commands) -> None:
    parser = add_command(
        commands,
        "info",
        "print the environment, the table of block sizes in use, and what is supported here",
        """\
Print the environment, all tables of block sizes (the one that this GPU uses, and
why it does not use the others), and what is supported on this machine.
""",
        "  python -m stn_triton info\n  python -m stn_triton info --json\n",
    )
    add_device(parser)
    add_json(parser)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code."""
    args = build_parser().parse(argv)
    return run(args, lambda _: importlib.import_module(_MODULES[args.command]).main(args), closed=EXIT_PIPE)
