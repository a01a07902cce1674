"""Compute shards in a pool of workers: in this process, or as Ray actors."""
