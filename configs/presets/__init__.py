"""The YAML presets, as package data."""
