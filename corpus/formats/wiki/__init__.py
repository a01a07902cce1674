"""MediaWiki for the formats that contain it: its words, the pages of its exports, and its preprocessor."""
