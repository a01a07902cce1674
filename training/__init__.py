"""Training: collators, the two stages, Tinypedia."""
