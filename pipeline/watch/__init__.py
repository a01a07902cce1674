"""Everything that only looks at a build: progress, pace, events, Prometheus, status."""
