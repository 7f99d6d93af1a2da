"""Programs that use the package, each run as ``python -m stn_triton.examples.NAME``."""
