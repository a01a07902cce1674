"""From a corpus to committed memory: plan → shards → workers → commit.

``build`` is the spine: it prepares a ``job``, chooses one of the ``turns``, opens a pool of workers (``pools``), lets
the ``driver`` hand out the plan's shards and commit what the workers wrote, and makes the ``report``.
"""
