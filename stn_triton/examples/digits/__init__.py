"""Spatial transformers learn: networks on distorted digits, ``python -m stn_triton.examples.digits``."""


class UsageError(ValueError):
    """An argument or a file is wrong: the message names it and says what was expected."""
