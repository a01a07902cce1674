"""Read the documents of shards: in a worker's own threads, or in processes that do nothing else.

``shard`` reads and tokenizes, ``serving`` does that in a reader process, ``process`` is the worker's side of one, and
``readers`` decides how many there are. A reader process imports no torch, no Ray and no Lance.
"""
