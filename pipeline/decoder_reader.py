"""Let a checkpoint's decoder read a sample of documents, to fit a codec to it or to measure what the codec loses."""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from ..configs import StoreConfig
from ..errors import CheckpointError, ConfigError
from ..model.decoder import Decoder
from ..model.decoding.sensitivity import Divergence, SampledDocument, divergence, fisher_matrix, sampled_documents
from ..model.families import Checkpoint, open_checkpoint
from ..model.loading.weight_files import weights_size
from ..model.memory import Stage
from ..store import MemorySample, codec_by_name, uses_sensitivity

LIGHT_BYTES = 1 << 30
"""Largest size of a decoder's weights that is loaded without being asked for: reading then takes some seconds."""

# On a CPU, the number of documents that are read to measure KL, times the size of the weights in bytes: 10 to 30 s.
_CPU_BYTES = 4 << 30
_LEAST_DOCUMENTS = 8


class DecoderReader:
    """A decoder that is loaded when it is first used, and dropped after it has measured a divergence.

    Args:
        checkpoint: folder of the checkpoint. It is opened again, since some families share weights between a
            compressor and a decoder of one opened checkpoint.
        stage: stage of the memory that is read.
        device: device to compute on.
        decoder_base: base decoder, if not the one that the checkpoint names.
        compressor_base: base of the compressor, if not the one that the checkpoint names.
        on_step: callback after each batch.
    """

    def __init__(
        self,
        checkpoint: str,
        stage: Stage,
        device: str,
        *,
        decoder_base: str | None = None,
        compressor_base: str | None = None,
        on_step: Callable[[], None] = lambda: None,
    ):
        self._path = checkpoint
        self._bases = {"decoder_base": decoder_base, "compressor_base": compressor_base}
        self._stage: Stage = stage
        self._device = device
        self._on_step = on_step
        self._loaded: tuple[Decoder, int] | None = None

    def sensitivity(self, sample: MemorySample) -> np.ndarray:
        """Return the Fisher matrix of the sample's memory ``(dim, dim)`` float64 (see ``fisher_matrix``).

        The decoder stays loaded for ``divergence``, except after an error.

        Raises:
            CheckpointError: the decoder cannot be loaded.
            PromptError: the decoder can read no document of the sample.
            ConfigError: the device or the machine has no room for the decoder.
        """
        try:
            with _with_room():
                decoder, _ = self._load()
                return fisher_matrix(decoder, self._documents(decoder, sample), on_batch=self._on_step)
        except Exception:
            self._release()
            raise

    def divergence(self, sample: MemorySample, decoded: np.ndarray) -> Divergence:
        """Measure the divergence of decoded memory ``(Σ n_mem, dim)``, and drop the decoder.

        On a CPU a large decoder reads fewer documents.

        Raises:
            CheckpointError: the decoder cannot be loaded.
            PromptError: the decoder can read no document of the sample.
        """
        try:
            decoder, size = self._load()
            if torch.device(self._device).type == "cpu":
                count = max(_CPU_BYTES // max(size, 1), _LEAST_DOCUMENTS)
                decoded = MemorySample(decoded, sample.lengths, sample.texts).spread(count).values
                sample = sample.spread(count)
            return divergence(decoder, self._documents(decoder, sample), decoded, on_batch=self._on_step)
        finally:
            self._release()

    def drop(self) -> None:
        """Drop the decoder if it is loaded."""
        if self._loaded is not None:
            self._release()

    def _load(self) -> tuple[Decoder, int]:
        """Return the decoder and the size of its weights on disk in bytes."""
        if self._loaded is None:
            checkpoint = open_checkpoint(self._path, **self._bases)
            size = weights_size(checkpoint.decoder_folder)
            # Rounding to bfloat16 hides what a good codec loses. A small decoder has room for float32 anywhere.
            is_exact = torch.device(self._device).type == "cpu" or size <= LIGHT_BYTES
            dtype = torch.float32 if is_exact else torch.bfloat16
            if torch.device(self._device).type == "cpu" and (free := _free_memory()) is not None and 2 * size > free:
                raise MemoryError(
                    f"it takes about {2 * size / 1e9:.1f} GB in float32, and {free / 1e9:.1f} GB are free"
                )
            self._loaded = Decoder.load(checkpoint, dtype=dtype, device=self._device), size
            self._on_step()
        return self._loaded

    def _release(self) -> None:
        self._loaded = None
        if self._device.startswith("cuda"):
            # The allocator keeps freed memory of the device, which the compressor needs.
            gc.collect()
            torch.cuda.empty_cache()

    def _documents(self, decoder: Decoder, sample: MemorySample) -> list[SampledDocument]:
        return sampled_documents(sample.values, sample.lengths, sample.texts, self._stage, decoder.memory_digest)


@contextmanager
def _with_room() -> Iterator[None]:
    """Turn a lack of memory for the decoder that a codec is fitted to into a ``ConfigError``."""
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise ConfigError(
            f"the decoder that the codec is fitted to has no room: {next(iter(str(error).splitlines()), '')}. Choose "
            "another codec or device, or fit the codec without the decoder: build with --no-measure-kl, recode without "
            "--checkpoint."
        ) from error


def _free_memory() -> int | None:
    """Return the number of bytes of memory that are free on this machine; None if unknown."""
    try:
        lines = Path("/proc/meminfo").read_text("utf-8").splitlines()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")), None)


def why_unread(checkpoint: Checkpoint, store: StoreConfig) -> str:
    """Return the reason for which a build does not load the decoder; an empty string if it does.

    Raises:
        CheckpointError: the configuration asks for a measured divergence, and the decoder cannot be found.
    """
    if store.measure_kl is False:
        return "turned off by --no-measure-kl"
    try:
        size = weights_size(checkpoint.decoder_folder)
    except CheckpointError:
        if store.measure_kl:
            raise
        return f"the base decoder {checkpoint.decoder_base} is not found (--decoder-base)"
    if store.measure_kl or size <= LIGHT_BYTES or uses_sensitivity(codec_by_name(store.codec)):
        return ""
    return f"the decoder's weights take {size / 1e9:.1f} GB (--measure-kl loads them)"
