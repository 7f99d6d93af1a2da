"""What `report` writes: the parts of the page."""
