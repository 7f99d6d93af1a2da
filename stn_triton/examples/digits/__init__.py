"""Spatial transformers learn: networks on distorted digits, ``python -m stn_triton.examples.digits``."""
