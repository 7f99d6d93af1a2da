"""Processes of Python's whose kernels are compiled: those that tests interpret cannot be."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def python(*arguments, timeout=None, **variables):
    """Run Python in the checkout, with the tests' environment but for the interpreter, and ``variables``."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | variables
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, timeout=timeout)
