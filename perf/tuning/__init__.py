"""Buckets of launches, the search among their configurations, and its state."""
