"""The compressor's forward pass over passages that are packed without padding."""
