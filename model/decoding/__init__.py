"""Greedy decoding over a cache of keys and values, and the sensitivity of a decoder to its memory."""
