"""The upkeep of a store, one verb per file: check (verify), repair, compact, delete, recode."""
