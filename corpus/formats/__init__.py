"""One file a corpus format: from its bytes to records and documents."""
