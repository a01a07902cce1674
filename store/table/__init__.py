"""Lance's tables and files: addresses, datasets, rows, pages, fragments, commits."""
