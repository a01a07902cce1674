"""The recipe of a store's fingerprint: the name and value of everything that determines memory."""

from ..configs import CompressionConfig
from .compressor import COMPRESSION_VERSION
from .families import Checkpoint


def settings_components(compression: CompressionConfig) -> dict[str, str]:
    """Return the components that do not depend on the checkpoint: the settings, and the version of the compression."""
    return {**compression.components, "compression": COMPRESSION_VERSION}


def memory_components(checkpoint: Checkpoint, compression: CompressionConfig) -> dict[str, str]:
    """Return all components of the fingerprint of memory that a checkpoint makes with these settings."""
    return {**checkpoint.identity, **settings_components(compression)}
