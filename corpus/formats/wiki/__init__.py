"""What the formats know of MediaWiki: its words, its exports' pages, and its preprocessor."""
