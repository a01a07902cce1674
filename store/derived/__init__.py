"""Values derived from data files, kept in caches beside the store: totals, and the hashes of ids and texts.

Lance never changes a data file or a list of deleted rows, so each entry is named after such files and cannot be stale.
An entry that is missing or damaged is derived again: a cache can make a result slow, and never wrong.
"""
