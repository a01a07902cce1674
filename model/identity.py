"""The recipe of a store's fingerprint: the name and value of everything that determines memory."""

from collections.abc import Mapping

from ..configs import CompressionConfig
from ..configs.names import MEMORY_AT_QUESTION
from .compressor import COMPRESSION_VERSION
from .families import Checkpoint
from .loading.content import same_config


def settings_components(compression: CompressionConfig) -> dict[str, str]:
    """Return the components that do not depend on the checkpoint: the settings, and the version of the compression."""
    return {**compression.components, "compression": COMPRESSION_VERSION}


def memory_components(
    checkpoint: Checkpoint,
    compression: CompressionConfig,
    *,
    at_question: bool = False,
    stored: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Return all components of the fingerprint of memory that a checkpoint makes with these settings.

    Args:
        checkpoint: the checkpoint.
        compression: settings that determine memory.
        at_question: True if memory is made with each question, and the store holds texts only.
        stored: components of the store that the result is compared with (see ``identity_as_stored``).
    """
    made = {"memory": MEMORY_AT_QUESTION} if at_question else {}
    identity = checkpoint.identity if stored is None else identity_as_stored(checkpoint, stored)
    return {**identity, **settings_components(compression), **made}


def identity_as_stored(checkpoint: Checkpoint, stored: Mapping[str, str]) -> dict[str, str]:
    """Return a checkpoint's identity in the form that a store holds, so that it differs only if memory does.

    A store that lacks components of the identity is older than them, and holds digests of the checkpoint's files. Of
    two configurations with the same meaning, the stored one is returned.
    """
    identity = dict(checkpoint.identity)
    if identity.keys() - stored.keys():
        identity = dict(checkpoint.file_identity)
    for name in identity.keys() & stored.keys():
        if name.endswith("_config") and same_config(stored[name], identity[name]):
            identity[name] = stored[name]
    return identity
