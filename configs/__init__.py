"""Typed, frozen configuration and the YAML presets that people start from."""

from .base import Config
from .build import BuildConfig, CompressionConfig, RunConfig, StoreConfig
from .corpus import CorpusConfig
from .load import load_config, load_finetuning, load_pretraining, presets
from .training import FinetuningConfig, PretrainingConfig, TrainingConfig

__all__ = [
    "BuildConfig",
    "CompressionConfig",
    "Config",
    "CorpusConfig",
    "FinetuningConfig",
    "PretrainingConfig",
    "RunConfig",
    "StoreConfig",
    "TrainingConfig",
    "load_config",
    "load_finetuning",
    "load_pretraining",
    "presets",
]
