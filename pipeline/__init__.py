"""From a corpus to committed memory: corpus → plan → worker → commit.

``build`` is the way in; ``driver`` hands the plan's shards to a ``pool`` of workers, in this process or on Ray
(``ray_pool``), and commits what they wrote.
"""
