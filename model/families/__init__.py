"""One file a checkpoint family."""
