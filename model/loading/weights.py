"""The weight files of a checkpoint: names and shapes at once, values when they are needed."""

from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

import torch
from safetensors import safe_open

from ...errors import CheckpointError
from .files import checkpoint_errors, read_json
from .tensors import load_model_tensors, require_finite, tensor_shapes
from .weight_files import mapped_weights, weight_files

_FLOATS = frozenset({"F64", "F32", "F16", "BF16"})


class WeightFiles:
    """The weights in a folder: safetensors or ``pytorch_model.bin``, whole or in shards with an index.

    Args:
        folder: folder of the files.

    Attributes:
        paths: the files.

    Raises:
        CheckpointError: there are none, or an index names a file that is not there.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        self.paths = weight_files(folder, str(folder))

    @cached_property
    def shapes(self) -> dict[str, torch.Size]:
        """Shape of each tensor by its name.

        Raises:
            CheckpointError: a file is damaged, two files have the same tensor, or the index names other tensors.
        """
        shapes: dict[str, torch.Size] = {}
        for path in self.paths:
            held = dict(_shapes(path))
            if twice := sorted(held.keys() & shapes.keys()):
                raise CheckpointError(f"{path}: has {twice[0]}, which another file has too.")
            shapes |= held
        index = self.paths[0].parent / f"{_whole_name(self.paths[0])}.index.json"
        if len(self.paths) > 1 or self.paths[0].name != _whole_name(self.paths[0]):
            named = set(read_json(index)["weight_map"])
            if wrong := sorted(named ^ shapes.keys()):
                raise CheckpointError(f"{index}: {wrong[0]} is in the index or in the files, but not in both.")
        return shapes

    def read(self, prefix: str, part: str = "") -> dict[str, torch.Tensor]:
        """Return the tensors whose names begin with a prefix and contain a part.

        Raises:
            CheckpointError: a file is damaged, or a value is not finite.
        """
        state: dict[str, torch.Tensor] = {}
        for path in self.paths:
            if path.suffix == ".bin":
                held = load_model_tensors(path).items()
                state |= {name: each for name, each in held if name.startswith(prefix) and part in name}
                continue
            with checkpoint_errors(f"{path}: damaged or truncated"), safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118
                    if name.startswith(prefix) and part in name:
                        state[name] = file.get_tensor(name)
                        require_finite(path, name, state[name])
        return state

    def mapped(self) -> dict[str, torch.Tensor]:
        """Return all tensors by name. Their values are read from the disk when they are used.

        Raises:
            CheckpointError: a file is damaged.
        """
        return {name: tensor for path in self.paths for name, tensor in mapped_weights(path).items()}


def _whole_name(path: Path) -> str:
    return "pytorch_model.bin" if path.suffix == ".bin" else "model.safetensors"


def _shapes(path: Path) -> Iterable[tuple[str, torch.Size]]:
    if path.suffix == ".bin":
        return list(tensor_shapes(path).items())
    shapes = []
    with checkpoint_errors(f"{path}: damaged or truncated"), safe_open(path, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118
            part = file.get_slice(name)
            if part.get_dtype() not in _FLOATS:
                raise CheckpointError(f"{path}: {name} holds {part.get_dtype()}; expected floating-point numbers.")
            shapes.append((name, torch.Size(part.get_shape())))
    return shapes
