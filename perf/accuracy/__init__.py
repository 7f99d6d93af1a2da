"""Errors against fp64: what is computed, by whom, and how it is judged and shown."""
