"""Typed, frozen configurations, and the YAML presets to start from."""

from .base import Config
from .build import BuildConfig, CompressionConfig, RunConfig, StoreConfig
from .corpus import CorpusConfig
from .load import load_config, load_finetuning, load_pretraining, preset_text, presets
from .search import SearchConfig
from .serve import ServeConfig
from .training import FinetuningConfig, PretrainingConfig, TrainingConfig

__all__ = [
    "BuildConfig",
    "CompressionConfig",
    "Config",
    "CorpusConfig",
    "FinetuningConfig",
    "PretrainingConfig",
    "RunConfig",
    "SearchConfig",
    "ServeConfig",
    "StoreConfig",
    "TrainingConfig",
    "load_config",
    "load_finetuning",
    "load_pretraining",
    "preset_text",
    "presets",
]
