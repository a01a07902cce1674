"""Training: data, collators, and the two stages that make a checkpoint."""
