"""``python -m perf``: measures the operator against PyTorch on the device at hand."""
