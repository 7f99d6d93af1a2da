"""Measurements of the operator: ``python -m perf``."""

from stn_triton.terminal import EXIT_FAILED, EXIT_OK, UsageError, chosen

__all__ = ["EXIT_FAILED", "EXIT_OK", "UsageError", "chosen"]
