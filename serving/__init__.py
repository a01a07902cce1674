"""HTTP over the reader: an OpenAI-compatible endpoint whose answers come from stored memory, and a page to ask it."""
