"""Python processes without Triton's interpreter, for tests of compiled kernels."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def python(*arguments, timeout=None, **variables):
    """Run Python in the checkout, without Triton's interpreter and with ``variables`` in the environment."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | variables
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, timeout=timeout)
