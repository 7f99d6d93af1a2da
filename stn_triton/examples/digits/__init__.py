"""Networks with spatial transformers on distorted digits: ``python -m stn_triton.examples.digits``."""
