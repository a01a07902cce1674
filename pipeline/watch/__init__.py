"""Everything that only observes a build: progress, pace, events, Prometheus, status."""
