"""Work on a finished store that needs its corpus or its checkpoint."""
