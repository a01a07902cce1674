"""Search the store: an inverted index (BM25) over the column ``contents`` of ``memory``."""
