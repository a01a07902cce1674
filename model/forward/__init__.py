"""The compressor's forward pass over packed passages."""
