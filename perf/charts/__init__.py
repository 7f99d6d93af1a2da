"""The charts of result files."""
