"""What the project asks of an H100 class GPU, and whether a table of results meets it."""

from __future__ import annotations

import pandas as pd


def targets(table: pd.DataFrame) -> pd.DataFrame:
    """A row per target: name, asked, measured, verdict."""
    return pd.DataFrame(columns=["name", "asked", "measured", "verdict"])
