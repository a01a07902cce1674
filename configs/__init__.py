"""Typed, frozen configuration and the YAML presets that people start from."""

from .base import Config
from .build import BuildConfig, CompressionConfig, RunConfig, StoreConfig
from .corpus import CorpusConfig
from .load import load_config, presets

__all__ = [
    "BuildConfig",
    "CompressionConfig",
    "Config",
    "CorpusConfig",
    "RunConfig",
    "StoreConfig",
    "load_config",
    "presets",
]
