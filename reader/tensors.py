"""Turn the rows of a store into tensors: memory as it is stored, or a decoder's embeddings."""

import copy
from collections.abc import Callable

import numpy as np
import torch

from ..model.connector import Connector
from ..model.device import to_device
from ..store import Latents, Rows, restored


def stored_tensor(rows: Rows, dtype: torch.dtype) -> torch.Tensor:
    """Return the memory of rows, at least one, as it is stored: ``(Σ n_mem, dim)`` of a dtype, on the CPU.

    Memory that is stored in bfloat16 becomes a bfloat16 tensor without a conversion.

    Raises:
        CorruptStoreError: a payload is damaged or belongs to another document.
        StoreError: a payload refers to a calibration that the store lacks.
    """
    latents = rows.latents()
    if latents is None:
        return torch.from_numpy(rows.memory()[0]).to(dtype)
    if latents.calibration is not None or (dtype == torch.float32 and latents.values.dtype == np.uint16):
        return torch.from_numpy(restored(latents)).to(dtype)
    return _tensor_of(latents).to(dtype)


class Embedder:
    """Computes the embeddings of stored rows at stage ``"hidden"``. Threads may share it.

    If all documents have the same codec and calibration, the inverse of the codec's normalisation, rotation or
    transform is folded into the connector's first layer, once. Decoding is then only a look-up and a scaling.

    Args:
        connector: function that returns the store's connector, in fp32.
    """

    def __init__(self, connector: Callable[[], Connector]):
        self._connector = connector
        # Connectors by codec, calibration (0 without one) and device.
        self._connectors: dict[tuple[int, int, torch.device], Connector] = {}

    # Training may use the embeddings, so they are no inference tensors.
    @torch.no_grad()
    def embed(self, rows: Rows, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        """Return the embeddings of rows, at least one: ``(Σ n_mem, out_dim)`` of a dtype, on a device.

        The connector computes in fp32, and its output is rounded to the dtype.

        Raises:
            CorruptStoreError: a payload is damaged or belongs to another document.
            StoreError: a payload refers to a calibration that the store lacks.
        """
        latents = rows.latents()
        if latents is None:
            hidden, connector = torch.from_numpy(rows.memory()[0]), self._for(None, device)
        else:
            hidden, connector = _tensor_of(latents), self._for(latents, device)
        return connector(to_device(hidden, device)).to(dtype)

    def _for(self, latents: Latents | None, device: torch.device) -> Connector:
        """Return the connector for latents on a device; the connector for memory if there are none."""
        codec, calibration = (None, None) if latents is None else (latents.codec, latents.calibration)
        is_folded = codec is not None and calibration is not None
        kind = (codec.codec_id, calibration.reference, device) if is_folded else (0, 0, device)
        # No lock: it does no harm if two threads both make a connector.
        if kind not in self._connectors:
            connector = self._connector()
            if codec is not None and (inverse := codec.inverse(calibration)) is not None:
                connector = connector.fold(*map(torch.from_numpy, inverse))
            self._connectors[kind] = connector if device.type == "cpu" else copy.deepcopy(connector).to(device)
        return self._connectors[kind]


def _tensor_of(latents: Latents) -> torch.Tensor:
    """Return latents as a tensor of float32, or of bfloat16 if they are the bits of it. The bytes are shared."""
    values = latents.values
    if values.dtype == np.uint16:
        return torch.from_numpy(values.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(values)
