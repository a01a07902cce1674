"""From a document id to its row: the id map, its cache, and the reader of rows."""
