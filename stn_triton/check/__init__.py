"""``python -m stn_triton check``: whether the operator is right on this machine."""
