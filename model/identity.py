"""The recipe of a store's fingerprint: the name and value of everything that determines memory."""

from ..configs import CompressionConfig
from ..configs.names import MEMORY_AT_QUESTION
from .compressor import COMPRESSION_VERSION
from .families import Checkpoint


def settings_components(compression: CompressionConfig) -> dict[str, str]:
    """Return the components that do not depend on the checkpoint: the settings, and the version of the compression."""
    return {**compression.components, "compression": COMPRESSION_VERSION}


def memory_components(
    checkpoint: Checkpoint, compression: CompressionConfig, *, at_question: bool = False
) -> dict[str, str]:
    """Return all components of the fingerprint of memory that a checkpoint makes with these settings.

    Args:
        checkpoint: the checkpoint.
        compression: settings that determine memory.
        at_question: True if memory is made with each question, and the store holds texts only.
    """
    made = {"memory": MEMORY_AT_QUESTION} if at_question else {}
    return {**checkpoint.identity, **settings_components(compression), **made}
