"""Greedy decoding over a cache of keys and values."""
