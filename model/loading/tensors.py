"""Read ``.pt`` files that hold plain tensors. Pickles that would do anything else are refused unread."""

import pickle
import pickletools
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ...errors import CheckpointError
from .files import checkpoint_errors

# A pickle of tensors takes some hundred bytes for each tensor; the largest checkpoints have thousands of them.
_MAX_PICKLE_BYTES = 64 << 20
_FLOATS = frozenset({torch.float64, torch.float32, torch.float16, torch.bfloat16})
# A file of plain tensors calls these functions and no other.
_ALLOWED_CALLS = frozenset(
    {"collections OrderedDict", "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter"}
)
# Opcodes by which a pickle could call something without naming it in a GLOBAL opcode.
_CALL_OPCODES = frozenset({"STACK_GLOBAL", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4"})


def load_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Read a dictionary of plain tensors, taking no more memory than the file has bytes.

    Raises:
        CheckpointError: the file is damaged, holds anything but named tensors, or a value is not finite.
    """
    state = _read(path)
    _require_tensors(path, state)
    for name, tensor in state.items():
        _require_plain(path, name, tensor)
    return dict(state)


def load_tensor_groups(path: Path) -> dict[str, dict[str, torch.Tensor]]:
    """Read a dictionary of dictionaries of plain tensors, such as a file with several adapters.

    Raises:
        CheckpointError: as for ``load_tensors``.
    """
    groups = _read(path)
    for name, state in groups.items():
        if not (isinstance(name, str) and isinstance(state, Mapping)):
            raise CheckpointError(f"{path}: {name!r} is no dictionary of tensors; expected nothing else.")
        _require_tensors(path, state)
        for key, tensor in state.items():
            _require_plain(path, f"{name}: {key}", tensor)
    return {name: dict(state) for name, state in groups.items()}


def load_model_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Read the weights of a model from a ``pytorch_model.bin``, without the integers that some models save beside them.

    Raises:
        CheckpointError: as for ``load_tensors``.
    """
    state = _read(path)
    _require_tensors(path, state)
    weights = {
        name: tensor for name, tensor in state.items() if tensor.is_floating_point() or not is_bookkeeping(name, tensor)
    }
    for name, tensor in weights.items():
        _require_plain(path, name, tensor)
    return weights


def tensor_shapes(path: Path) -> dict[str, torch.Size]:
    """Return the shape of each tensor in a file without reading its values; names in groups are joined by ``: ``.

    Raises:
        CheckpointError: as for ``mapped_tensors``.
    """
    return {name: tensor.shape for name, tensor in mapped_tensors(path).items()}


def mapped_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Return the tensors in a file, whose values are read when they are used; names in groups are joined by ``: ``.

    Raises:
        CheckpointError: the file is damaged or holds anything but tensors and dictionaries of tensors.
    """
    tensors: dict[str, torch.Tensor] = {}
    for name, value in _read(path, mapped=True).items():
        group = {f"{name}: {key}": tensor for key, tensor in value.items()} if isinstance(value, Mapping) else None
        for key, tensor in ({name: value} if group is None else group).items():
            if not isinstance(tensor, torch.Tensor):
                raise CheckpointError(f"{path}: {key!r} is no tensor; expected nothing else.")
            tensors[str(key)] = tensor
    return tensors


def is_bookkeeping(name: str, tensor: torch.Tensor) -> bool:
    """Return True for integers that are no weights: single numbers, causal masks (named bias) and position ids."""
    return tensor.numel() <= 1 or "bias" in name or "position" in name


def _read(path: Path, *, mapped: bool = False) -> Mapping[Any, Any]:
    """Return the dictionary in a file. Mapped values are read from the disk when they are used."""
    refused = CheckpointError(
        f"{path}: refused, nothing of it was run: it is damaged or holds something other than a plain dictionary of "
        "tensors."
    )
    with checkpoint_errors(f"{path}: damaged or truncated, fetch it again"):
        if not zipfile.is_zipfile(path) or _calls_more_than_tensors_need(path):
            raise refused
    try:
        with checkpoint_errors(f"{path}: damaged or truncated, fetch it again"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped or None)
    except CheckpointError as error:
        # torch's own message would advise to load the file without this check.
        raise (refused if isinstance(error.__cause__, pickle.UnpicklingError) else error) from None
    if not isinstance(state, Mapping):
        raise CheckpointError(f"{path}: holds {type(state).__name__}; expected a dictionary of named tensors.")
    return state


def _require_tensors(path: Path, state: Mapping[Any, Any]) -> None:
    wrong = [k for k, v in state.items() if not (isinstance(k, str) and isinstance(v, torch.Tensor))]
    if wrong:
        raise CheckpointError(f"{path}: {wrong[0]!r} is no named tensor; expected nothing else.")


def _calls_more_than_tensors_need(path: Path) -> bool:
    """Return True if the pickle in an archive calls anything else, even what torch considers harmless."""
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        if sum(entry.file_size for entry in entries) > path.stat().st_size:
            raise ValueError("its parts are larger than the file")
        pickles = [entry for entry in entries if entry.filename.rpartition("/")[2] == "data.pkl"]
        if len(pickles) != 1 or pickles[0].file_size > _MAX_PICKLE_BYTES:
            raise ValueError("it is no archive of tensors")
        for opcode, value, _ in pickletools.genops(archive.read(pickles[0])):
            if opcode.name in _CALL_OPCODES:
                return True
            if opcode.name == "GLOBAL" and value not in _ALLOWED_CALLS and not _is_storage(str(value)):
                return True
    return False


def _is_storage(name: str) -> bool:
    module, _, kind = name.partition(" ")
    return module in ("torch", "torch.storage") and kind.endswith("Storage")


def _require_plain(path: Path, name: str, tensor: torch.Tensor) -> None:
    if tensor.layout != torch.strided or tensor.dtype not in _FLOATS:
        raise CheckpointError(
            f"{path}: {name} holds {tensor.dtype} ({tensor.layout}); expected plain floating-point numbers."
        )
    # A stride of 0 makes a tensor of any size from one number.
    if tensor.numel() * tensor.itemsize > tensor.untyped_storage().nbytes():
        raise CheckpointError(
            f"{path}: {name} claims the shape {tuple(tensor.shape)}, which is more than the file holds."
        )
    require_finite(path, name, tensor)


def require_finite(origin: object, name: str, tensor: torch.Tensor) -> None:
    """Check that all values of a tensor are finite, in one pass and without a copy.

    Raises:
        CheckpointError: a value is infinite or not a number.
    """
    if tensor.numel() and not torch.stack(torch.aminmax(tensor)).isfinite().all():
        raise CheckpointError(f"{origin}: {name} has values that are not finite.")
