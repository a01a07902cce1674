"""The connector: from the compressor's hidden width to the decoder's embedding width."""

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from torch import nn

from ..configs.names import Stage
from ..errors import CheckpointError, CorruptStoreError
from .memory import Memory


class Connector(nn.Module):
    """Linear, ReLU, Linear: ``(…, in_dim)`` to ``(…, out_dim)``, from compressor to decoder width.

    The weights' names are those of a ``connector.pt``: ``0.weight``, ``0.bias``, ``2.weight``, ``2.bias``.
    """

    def __init__(self, in_dim: int, mlp_dim: int, out_dim: int):
        super().__init__()
        self.in_dim = in_dim
        self.mlp_dim = mlp_dim
        self.out_dim = out_dim
        self.layers = nn.Sequential(nn.Linear(in_dim, mlp_dim), nn.ReLU(), nn.Linear(mlp_dim, out_dim))
        self.digest = ""

    @classmethod
    def from_state(cls, state: Mapping[str, torch.Tensor], origin: str) -> "Connector":
        """Build a connector from its four tensors, in fp32.

        Args:
            state: the tensors by name.
            origin: name of their file or store in messages.

        Raises:
            CheckpointError: a tensor is missing or unknown, or the shapes do not fit together.
        """
        expected = {"0.weight", "0.bias", "2.weight", "2.bias"}
        if set(state) != expected:
            raise CheckpointError(
                f"{origin}: a connector has the tensors {sorted(expected)}, found {sorted(state)[:8]}."
            )
        first, second = state["0.weight"], state["2.weight"]
        if (
            first.ndim != 2
            or second.ndim != 2
            or second.shape[1] != first.shape[0]
            or state["0.bias"].shape != first.shape[:1]
            or state["2.bias"].shape != second.shape[:1]
        ):
            shapes = {name: tuple(tensor.shape) for name, tensor in sorted(state.items())}
            raise CheckpointError(f"{origin}: the shapes of the connector's tensors do not fit together: {shapes}.")
        for name, tensor in state.items():
            if not (tensor.is_floating_point() and tensor.float().isfinite().all()):
                raise CheckpointError(f"{origin}: {name} has values that are not finite floating-point numbers.")
        connector = cls(first.shape[1], first.shape[0], second.shape[0])
        connector.layers.load_state_dict(dict(state))
        connector.digest = digest_tensors(state)
        return connector.eval().requires_grad_(False)

    @classmethod
    def from_bytes(cls, content: bytes, digest: str, origin: str) -> "Connector":
        """Build the connector that a store keeps, in fp32, and check its digest.

        Args:
            content: the tensors, as a safetensors file.
            digest: digest that the connector must have.
            origin: name of the store in messages.

        Raises:
            CorruptStoreError: the connector cannot be read, or has another digest.
        """
        try:
            connector = cls.from_state(load_tensors(content), origin)
        # safetensors and torch raise several built-in exceptions over damaged bytes, too.
        except (SafetensorError, CheckpointError, ValueError, RuntimeError, KeyError, TypeError) as error:
            raise CorruptStoreError(f"{origin}: its connector cannot be read ({error}).") from error
        if connector.digest != digest:
            raise CorruptStoreError(f"{origin}: its connector is not the one that the store was made with.")
        return connector

    def dim(self, stage: Stage) -> int:
        """Return the width of memory at a stage: before the connector (``"hidden"``) or after it."""
        return self.in_dim if stage == "hidden" else self.out_dim

    def state(self) -> dict[str, torch.Tensor]:
        """Return the four tensors under their names in ``connector.pt``."""
        return {name: tensor.detach().cpu() for name, tensor in self.layers.state_dict().items()}

    @property
    def weight(self) -> torch.Tensor:
        """The first layer's weight. Its dtype and device are the connector's."""
        return next(self.parameters())

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Map hidden states to decoder embeddings, in the connector's own dtype."""
        return self.layers(hidden.to(self.weight.dtype))

    def fold(self, matrix: torch.Tensor, offset: torch.Tensor) -> Self:
        """Return this connector with an affine map before it, as part of its first layer.

        Args:
            matrix: ``(m, in_dim)``.
            offset: ``(in_dim,)``.

        Returns:
            A connector ``f`` with ``f(x) = self(x @ matrix + offset)`` up to rounding, for x ``(…, m)``.
        """
        state = {name: tensor.double() for name, tensor in self.state().items()}
        weight, bias = state["0.weight"], state["0.bias"]
        state["0.weight"], state["0.bias"] = weight @ matrix.double().T, weight @ offset.double() + bias
        folded = type(self)(matrix.shape[0], self.mlp_dim, self.out_dim)
        folded.layers.load_state_dict(state)
        # The folded connector gives the same embeddings, so it counts as the same connector.
        folded.digest = self.digest
        return folded.to(self.weight.device, self.weight.dtype).eval().requires_grad_(False)

    @torch.inference_mode()
    def connect(self, memory: Memory) -> Memory:
        """Return the memory at stage ``"embedding"``. Memory that is already there is returned as it is."""
        if memory.stage == "embedding":
            return memory
        values = self(memory.values.to(self.weight.device))
        return replace(memory, values=values, stage="embedding")


def digest_tensors(state: Mapping[str, torch.Tensor]) -> str:
    """Return a digest of named tensors. It hashes their values in fp32, so the stored dtype does not change it."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(state.items()):
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()
