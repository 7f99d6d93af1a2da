"""Measurements of the operator: ``python -m perf``."""

import importlib.util
import sys
from pathlib import Path

_SHARED = "stn_triton.terminal"
if _SHARED not in sys.modules:
    # By its path: importing its package imports torch, for which --help and `compare` would wait seconds.
    _package = importlib.util.find_spec("stn_triton")
    if _package is None:
        raise ModuleNotFoundError("No module named 'stn_triton'", name="stn_triton")
    _spec = importlib.util.spec_from_file_location(_SHARED, Path(_package.origin).with_name("terminal.py"))
    sys.modules[_SHARED] = importlib.util.module_from_spec(_spec)
    _spec.loader.exec_module(sys.modules[_SHARED])

from stn_triton.terminal import EXIT_FAILED, EXIT_OK, UsageError, chosen

__all__ = ["EXIT_FAILED", "EXIT_OK", "UsageError", "chosen"]
