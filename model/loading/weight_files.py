"""Find the files of a model's weights. A folder whose files hold different weights is refused.

Training may save a grown model in shards beside its old file, and a new checkpoint may be copied over an old one.
Which of two sets is meant cannot be known then, and loading either without a word could be wrong. Files that hold the
same weights twice, such as the usual ``pytorch_model.bin`` beside ``model.safetensors``, are fine.
"""

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors import safe_open

from ...errors import CheckpointError
from .files import checkpoint_errors, read_json
from .tensors import mapped_tensors

log = logging.getLogger(__name__)

_SINGLE = ("model.safetensors", "pytorch_model.bin")
# Endings of files with tensors. Two files whose names differ in the ending only are two versions of one thing.
_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")
# Blocks of values that are compared of each tensor, and their size. Another training changes nearly every value.
_BLOCKS, _BLOCK = 8, 1024


def weight_files(folder: Path, name: str) -> list[Path]:
    """Return the files of a model's weights: safetensors, else ``pytorch_model.bin``, whole or in shards.

    Args:
        folder: folder of the model.
        name: name of the model in messages.

    Raises:
        CheckpointError: there are none, an index names a file that is not beside it, or other files in the folder hold
            other values of the same tensors. The message names both.
    """
    if adapters := sorted(folder.glob("adapter_model.*")):
        raise CheckpointError(f"{adapters[0]}: weights of an adapter beside those of a model; merge it, or remove it.")
    chosen, *others = _sets(folder) or [(folder, [])]
    if not chosen[1]:
        shards = sorted([*folder.glob("model-*-of-*.safetensors"), *folder.glob("pytorch_model-*-of-*.bin")])
        found = f" It has {shards[0].name}, a shard, and no index that names it." if shards else ""
        raise CheckpointError(
            f"{name}: cannot be loaded: there is no model.safetensors or pytorch_model.bin in it, whole or in "
            f"shards.{found}"
        )
    known = {path for _, paths in (chosen, *others) for path in paths}
    left = sorted({*folder.glob("*.safetensors"), *folder.glob("pytorch_model*.bin")} - known)
    for other, paths in others:
        _require_same(chosen, (other, paths), is_whole=True)
    for path in left:
        _require_same(chosen, (path, [path]), is_whole=False)
    return chosen[1]


def weights_size(folder: Path) -> int:
    """Return the size of a model's weights on disk, in bytes.

    Raises:
        CheckpointError: there are none, or which of several is meant cannot be known.
    """
    return sum(path.stat().st_size for path in weight_files(folder, str(folder)))


def require_single(path: Path) -> None:
    """Check that no file beside one with tensors has its name with another ending and holds other values.

    Raises:
        CheckpointError: naming both files.
    """
    for suffix in _SUFFIXES:
        other = path.with_suffix(suffix)
        if other != path and other.is_file():
            _require_same((path, [path]), (other, [other]), is_whole=True)


def mapped_weights(path: Path) -> dict[str, torch.Tensor]:
    """Return the tensors in a weight file by name. Their values are read from the disk when they are used.

    Raises:
        CheckpointError: the file is damaged.
    """
    if path.suffix != ".safetensors":
        return mapped_tensors(path)
    with checkpoint_errors(f"{path}: damaged or truncated"), safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def _sets(folder: Path) -> list[tuple[Path, list[Path]]]:
    """Return the sets of weights in a folder, each with the file or index that stands for it, the preferred one first.

    An index whose shards are all of the other format's set is left over when only that format is downloaded.
    """
    sets: list[tuple[Path, list[Path]]] = []
    unread: list[Path] = []
    for name in _SINGLE:
        single, index = folder / name, folder / f"{name}.index.json"
        if single.is_file():
            sets.append((single, [single]))
        if not index.is_file():
            continue
        shards = _shards(index)
        missing = [path.name for path in shards if not path.is_file()]
        if not missing:
            sets.append((index, shards))
        elif len(missing) == len(shards) and not single.is_file():
            unread.append(index)
        else:
            beside = f" {single.name} beside it holds weights too." if single.is_file() else ""
            raise CheckpointError(
                f"{index}: names {missing[0]}, which is not there.{beside} Fetch it again, or remove what is not meant."
            )
    if unread and not sets:
        raise CheckpointError(f"{unread[0]}: names {_shards(unread[0])[0].name}, which is not there. Fetch it again.")
    return sets


def _shards(index: Path) -> list[Path]:
    values = read_json(index)
    shards = values.get("weight_map") if isinstance(values, dict) else None
    if not isinstance(shards, dict) or not shards or not isinstance(values.get("metadata", {}), dict):
        raise CheckpointError(f"{index}: names no files.")
    suffix = Path(index.name.removesuffix(".index.json")).suffix
    for shard in shards.values():
        if not isinstance(shard, str) or Path(shard).name != shard or not shard.endswith(suffix):
            raise CheckpointError(f"{index}: names {shard!r}, which is no file beside it.")
    return [index.with_name(shard) for shard in sorted(set(shards.values()))]


def _require_same(chosen: tuple[Path, list[Path]], other: tuple[Path, list[Path]], *, is_whole: bool) -> None:
    """Check that two sets of weights hold the same values, as far as both hold a tensor.

    Args:
        chosen: the set that is read: the file that stands for it, and its files.
        other: the other set.
        is_whole: True if the other set is a model of its own, so that it must have the same tensors.
    """
    ours, theirs = (
        {name: each for path in paths for name, each in mapped_weights(path).items()} for _, paths in (chosen, other)
    )
    shared = ours.keys() & theirs.keys()
    differing = sorted(name for name in shared if not _same(ours[name], theirs[name]))
    if is_whole:
        differing += [*_only(ours, theirs), *_only(theirs, ours)]
    if differing:
        raise CheckpointError(
            f"{chosen[0]} and {other[0].name} beside it hold different weights, for example of {differing[0]}. Which "
            "of them is meant cannot be known. Move the other one away."
        )
    if shared:
        log.info("%s holds the same weights as %s, which is read.", other[0], chosen[0].name)


def _only(state: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> Iterator[str]:
    """Yield the tensors that only one set has, unless it has them twice or they are no weights."""
    for name in sorted(state.keys() - other.keys()):
        tensor = state[name]
        is_weight = tensor.is_floating_point() and not name.endswith("inv_freq")
        # Safetensors leave out a tensor that is tied to another, and pickles keep both.
        if is_weight and not any(key != name and _same(tensor, each) for key, each in state.items()):
            yield name


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Return True if sampled values of two tensors are the same, rounded to the narrower dtype."""
    if one.shape != other.shape or one.is_floating_point() != other.is_floating_point():
        return False
    dtype = min(one, other, key=lambda each: each.itemsize).dtype
    one, other = one.reshape(-1), other.reshape(-1)
    starts = [0] if len(one) <= _BLOCKS * _BLOCK else [i * (len(one) - _BLOCK) // (_BLOCKS - 1) for i in range(_BLOCKS)]
    size = len(one) if len(starts) == 1 else _BLOCK
    return all(
        torch.equal(one[start : start + size].to(dtype), other[start : start + size].to(dtype)) for start in starts
    )
