"""Checkpoint families: one file each, behind the protocol ``Checkpoint``."""

from pathlib import Path

from .checkpoint import Checkpoint
from .pisco import PiscoCheckpoint

__all__ = ["Checkpoint", "open_checkpoint"]


def open_checkpoint(
    path: str | Path, *, decoder_base: str | None = None, compressor_base: str | None = None
) -> Checkpoint:
    """Open a checkpoint folder. Its weights are read when they are first used.

    Args:
        path: folder of the checkpoint.
        decoder_base: folder or cached hub name of the base decoder; default: the name in the checkpoint.
        compressor_base: name of the compressor's base, for descriptions only; default: the name in the checkpoint.

    Raises:
        CheckpointError: the folder, a file in it or a key of its ``config.json`` is missing or wrong.
    """
    return PiscoCheckpoint(path, decoder_base=decoder_base, compressor_base=compressor_base)
