"""What knows Lance's tables and files: addresses, pages, fragments, commits."""
