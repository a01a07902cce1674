"""Checkpoint families: one file each, behind the protocol ``Checkpoint``."""

from contextlib import suppress
from pathlib import Path

from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError

from ...errors import CheckpointError
from ...places import local_path
from ..loading.files import read_json
from .checkpoint import Checkpoint
from .cocom import QUERY_EXTRA, CocomCheckpoint
from .cocom_v1 import CocomV1Checkpoint
from .merged import MergedCocom, MergedCocomV1, MergedOscar
from .oscar import OscarCheckpoint
from .pisco import PiscoCheckpoint

__all__ = ["Checkpoint", "open_checkpoint"]


def open_checkpoint(
    path: str | Path,
    *,
    decoder_base: str | None = None,
    compressor_base: str | None = None,
    query_extra: int = QUERY_EXTRA,
    doc_max_length: int | None = None,
) -> Checkpoint:
    """Open a checkpoint folder of any family. Its weights are read when they are first used.

    Args:
        path: folder of the checkpoint, or its hub name if it is in the Hugging Face cache.
        decoder_base: folder or cached hub name of the base decoder; default: the name in the checkpoint.
        compressor_base: folder or cached hub name of the compressor's base; default: the name in the checkpoint.
        query_extra: tokens that a question may take beyond ``doc_max_length``, if memory is made for a question.
        doc_max_length: largest number of tokens of a passage in family "cocom-v1", whose ``config.json`` has none;
            default: 128, as it was trained.

    Raises:
        CheckpointError: the folder, a file in it or a key of its ``config.json`` is missing or wrong, or it belongs
            to no family that this version reads.
    """
    path = _folder(local_path(path, CheckpointError))
    bases = {"decoder_base": _base(decoder_base), "compressor_base": _base(compressor_base)}
    origin = path / "config.json"
    values = read_json(origin) if origin.is_file() else {}
    kind = str(values.get("model_type", "PISCO")) if isinstance(values, dict) else "PISCO"
    is_oscar, is_merged = (bool(isinstance(values, dict) and values.get(key)) for key in ("compr_model_name", "merged"))
    match kind.upper():
        case "PISCO":
            return PiscoCheckpoint(path, **bases)
        case "COCOM" if "doc_max_length" in values:
            merged, separate = (MergedOscar, OscarCheckpoint) if is_oscar else (MergedCocom, CocomCheckpoint)
            return (merged if is_merged else separate)(path, query_extra=query_extra, **bases)
        case "COCOM" if "compr_linear_type" in values:
            family = MergedCocomV1 if is_merged else CocomV1Checkpoint
            return family(path, doc_max_length=doc_max_length, **bases)
    raise CheckpointError(
        f"{origin}: model_type is {kind!r}, and its keys fit no family that this version reads: PISCO is family pisco, "
        "COCOM with doc_max_length is cocom or oscar, COCOM with compr_linear_type is cocom-v1."
    )


def _base(name: str | None) -> str | None:
    # A Path has no ./ at its beginning, and the name without it could be one of the hub.
    return name if name is None or name.startswith(".") else str(local_path(name, CheckpointError))


def _folder(path: str | Path) -> Path:
    """Return a checkpoint's folder, or the cached snapshot of a hub name."""
    if not Path(path).is_dir():
        with suppress(HFValidationError, OSError):
            cached = try_to_load_from_cache(str(path), "config.json")
            if isinstance(cached, str):
                return Path(cached).parent
    return Path(path)
