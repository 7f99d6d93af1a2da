"""What `tune` works with: buckets of launches, the search among configurations, and its state."""
