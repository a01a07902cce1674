"""What a checkpoint's files hold, looked at before they are believed.

A file says what it wants to have allocated: a pickle may build an array of any size, a configuration may name a width
of a million million, a link may lead anywhere. Here these are compared with the bytes that are there.
"""

import json
import os
import pickle
import pickletools
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from ..errors import CheckpointError

# The largest ones of models are some kilobytes, but for lists of layers and quantised modules.
MAX_JSON_BYTES = 16 << 20
# A pickle of tensors holds some hundred bytes for each.
_MAX_PICKLE_BYTES = 64 << 20
_MAX_LAYERS = 10_000
# Numbers in a configuration that modules, or entries of lists, are counted by.
_COUNTS = ("layer", "expert", "block", "depth", "stage", "label")
_MAX_NUMBER = 2**40
# What a model may have beside what its files hold: rotary tables, masks, a head that is not used.
_SLACK = 1 << 26
_FLOATS = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
# All that a file of plain tensors calls, and the opcodes by which a pickle could call anything else.
_CALLED = frozenset({"collections OrderedDict", "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter"})
_OTHER_CALLS = frozenset({"STACK_GLOBAL", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4"})


@contextmanager
def errors_name(problem: str) -> Iterator[None]:
    """Raise whatever a library makes of a file it cannot use as a CheckpointError that says where it was."""
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(f"{problem}: {_first_line(error)}") from error


def read_json(path: Path) -> Any:
    """Read a JSON file of a checkpoint.

    Raises:
        CheckpointError: if it is not JSON, or is larger or deeper than such a file can be.
    """
    try:
        size = path.stat().st_size
        if size > MAX_JSON_BYTES:
            raise CheckpointError(f"{path}: has {size:,} bytes; a file of settings has at most {MAX_JSON_BYTES:,}.")
        return json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not valid JSON: {_first_line(error)}.") from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}.") from None


def require_own_files(root: Path, names: tuple[str, ...] = ("",)) -> None:
    """Check that what lies in a folder is in it: files and folders, and no link that leads out of it.

    The Hub's cache is the exception: there, a snapshot's files are links to the blobs beside it.

    Args:
        root: the folder.
        names: the entries of it that count.

    Raises:
        CheckpointError: naming the first file that is something else, or elsewhere.
    """
    home = root.resolve()
    allowed = [home, *(parent.parent / "blobs" for parent in (home, *home.parents) if parent.name == "snapshots")]
    for path in _walk([root / name for name in names]):
        target = path.resolve()
        if not any(target.is_relative_to(folder) for folder in allowed):
            raise CheckpointError(
                f"{path}: a link out of {root}, to {target}. What a checkpoint reads has to lie in it: put the file "
                "there in place of the link."
            )
        if not (target.is_file() or target.is_dir()):
            raise CheckpointError(f"{path}: neither a file nor a folder.")


def _walk(paths: list[Path], depth: int = 2) -> Iterator[Path]:
    """Entries, and what is in them as deep as models and tokenizers are read."""
    for path in paths:
        yield path
        # What a link leads to is in the folder, and so is looked at where it lies.
        if depth and path.is_dir() and not path.is_symlink():
            yield from _walk([Path(entry.path) for entry in os.scandir(path)], depth - 1)


def load_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Read a plain tensor dictionary; nothing else is unpickled, and no more memory taken than the file has bytes.

    Raises:
        CheckpointError: if the file is damaged, holds anything but named tensors, or a value is not finite.
    """
    refused = CheckpointError(
        f"{path}: refused, nothing of it was run: it is damaged or holds something other than a plain dictionary of "
        "tensors."
    )
    with errors_name(f"{path}: damaged or truncated, fetch it again"):
        is_archive = zipfile.is_zipfile(path)
    if not is_archive:
        raise refused
    with errors_name(f"{path}: damaged or truncated, fetch it again"):
        calls_others = _calls_others(path)
    if calls_others:
        raise refused
    try:
        with errors_name(f"{path}: damaged or truncated, fetch it again"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            state = torch.load(path, map_location="cpu", weights_only=True)
    except CheckpointError as error:
        # Not torch's own words, which advise to load it all the same.
        raise (refused if isinstance(error.__cause__, pickle.UnpicklingError) else error) from None
    if not isinstance(state, Mapping):
        raise CheckpointError(f"{path}: holds {type(state).__name__}; expected a dictionary of named tensors.")
    strange = [k for k, v in state.items() if not (isinstance(k, str) and isinstance(v, torch.Tensor))]
    if strange:
        raise CheckpointError(f"{path}: {strange[0]!r} is no named tensor; expected nothing else.")
    for name, tensor in state.items():
        _require_plain(path, name, tensor)
    return dict(state)


def _calls_others(path: Path) -> bool:
    """Whether the pickle in an archive calls more than tensors need, though torch may think it harmless."""
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        if sum(each.file_size for each in entries) > path.stat().st_size:
            raise ValueError("its parts are larger than the file")
        pickles = [each for each in entries if each.filename.rpartition("/")[2] == "data.pkl"]
        if len(pickles) != 1 or pickles[0].file_size > _MAX_PICKLE_BYTES:
            raise ValueError("it is no archive of tensors")
        for opcode, value, _ in pickletools.genops(archive.read(pickles[0])):
            if opcode.name in _OTHER_CALLS:
                return True
            if opcode.name == "GLOBAL" and value not in _CALLED and not _is_storage(str(value)):
                return True
    return False


def _is_storage(name: str) -> bool:
    module, _, kind = name.partition(" ")
    return module in ("torch", "torch.storage") and kind.endswith("Storage")


def _require_plain(path: Path, name: str, tensor: torch.Tensor) -> None:
    if tensor.layout != torch.strided or tensor.dtype not in _FLOATS:
        raise CheckpointError(
            f"{path}: {name} holds {tensor.dtype} ({tensor.layout}); expected plain floating numbers."
        )
    # Steps of nothing make a tensor of any size from one number.
    if tensor.numel() * tensor.itemsize > tensor.untyped_storage().nbytes():
        raise CheckpointError(f"{path}: {name} is said to be {tuple(tensor.shape)}, more than the file holds.")
    require_finite(path, name, tensor)


def require_finite(origin: object, name: str, tensor: torch.Tensor) -> None:
    """Check that all values of a tensor are numbers, in one pass and without a copy.

    Raises:
        CheckpointError: if one is infinite or none.
    """
    if tensor.numel() and not torch.stack(torch.aminmax(tensor)).isfinite().all():
        raise CheckpointError(f"{origin}: {name} has values that are not finite.")


def read_model_config(folder: Path) -> dict[str, Any]:
    """A model's ``config.json``, once nothing in it asks for other files, for libraries or for absurd sizes.

    Raises:
        CheckpointError: naming what is wrong.
    """
    path = folder / "config.json"
    values = read_json(path)
    if not isinstance(values, dict):
        raise CheckpointError(f"{path}: no model configuration: holds {type(values).__name__}, expected an object.")
    if (folder / "adapter_config.json").exists():
        raise CheckpointError(f"{folder}: an adapter, whose adapter_config.json names another model; merge it first.")
    for key in ("quantization_config", "transformers_weights"):
        if values.get(key) is not None:
            raise CheckpointError(f"{folder}: cannot be loaded: its config.json has {key}, which is not supported.")
    for name, number in _numbers(values):
        is_count = any(word in name.lower() for word in _COUNTS)
        if abs(number) > (_MAX_LAYERS if is_count else _MAX_NUMBER):
            raise CheckpointError(f"{path}: no model configuration has {name} {number}.")
    return values


def _numbers(values: Any, name: str = "") -> Iterator[tuple[str, int | float]]:
    if isinstance(values, bool):
        return
    if isinstance(values, int):
        yield name, values
    elif isinstance(values, dict):
        for key, value in values.items():
            yield from _numbers(value, str(key))
    elif isinstance(values, list):
        for value in values:
            # Entries of a list are indices (of layers, of tokens) and count nothing.
            yield from _numbers(value, "" if isinstance(value, int) else name)


def require_weights(folder: Path, name: str, auto_class: Any, config: Any) -> int:
    """Check that a model's files hold about as many numbers as its configuration asks for, before it is made.

    Args:
        folder: of the model.
        name: what messages call it.
        auto_class: that it is to be made by.
        config: its transformers configuration.

    Returns:
        How many parameters it will have.

    Raises:
        CheckpointError: if they do not, are damaged, or hold something other than floating numbers.
    """
    tensors = held = 0
    for path in _weight_files(folder, name):
        with errors_name(f"{name}: cannot be loaded: {path.name}"), safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118
                part = file.get_slice(key)
                count = 1
                for length in part.get_shape():
                    count *= length
                tensors, held = tensors + 1, held + count
                if (
                    count > 1
                    and part.get_dtype() not in _FLOATS.values()
                    and "bias" not in key
                    and "position" not in key
                ):
                    raise CheckpointError(f"{path}: {key} holds {part.get_dtype()}; expected floating numbers.")
    layers = getattr(config, "num_hidden_layers", 1)
    if not 1 <= layers <= tensors:
        raise CheckpointError(f"{name}: its config.json says {layers} layers, and its files hold {tensors} tensors.")
    with errors_name(f"{name}: its configuration makes no model"), torch.device("meta"):
        model = auto_class.from_config(config, attn_implementation=None, trust_remote_code=False)
    parameters = sum(each.numel() for each in model.parameters())
    wanted = parameters + sum(each.numel() for each in model.buffers())
    if wanted > 2 * held + _SLACK:
        raise CheckpointError(f"{name}: its config.json asks for {wanted:,} numbers, and its files hold {held:,}.")
    return parameters


def _weight_files(folder: Path, name: str) -> list[Path]:
    """The safetensors files that transformers would read."""
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file():
        return [single]
    if not index.is_file():
        raise CheckpointError(f"{name}: cannot be loaded: there is no model.safetensors in it, whole or in shards.")
    values = read_json(index)
    shards = values.get("weight_map") if isinstance(values, dict) else None
    if not isinstance(shards, dict) or not isinstance(values.get("metadata", {}), dict):
        raise CheckpointError(f"{index}: names no files.")
    for shard in shards.values():
        if not isinstance(shard, str) or Path(shard).name != shard or not shard.endswith(".safetensors"):
            raise CheckpointError(f"{index}: names {shard!r}, which is no file beside it.")
    return [folder / shard for shard in sorted(set(shards.values()))]


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:300]
