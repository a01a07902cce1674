"""Write a checkpoint with its adapters merged and its base model's parts copied (see ``merged``)."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn
from transformers import GenerationConfig

from ...configs import CompressionConfig
from ...errors import CheckpointError
from ..compressor import Compressor
from ..create import require_new_folder, save_model
from ..decoder import Decoder
from ..forward.grouped import GroupedEncoder
from ..generation import GenerationDefaults
from ..loading.files import read_json
from ..loading.tensors import require_finite
from ..memory import Memory
from . import open_checkpoint
from .checkpoint import Checkpoint
from .merged import COMPRESSOR, CONNECTOR, DECODER, MergedCheckpoint, digest_merged, merged_configs
from .on_base import OnBaseCheckpoint

# Input that is given to the original and to the converted checkpoint. The question is short enough for every length.
QUESTION = "Who?"
TEXTS = ("", "Paris is the capital of France.", "The river rises in the hills and runs to the sea. " * 20)
# Largest difference that passes, as a fraction of the original's largest value: a few steps of rounding in each dtype.
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}


@dataclass(frozen=True)
class Converted:
    """A checkpoint that was converted and compared with its original.

    Attributes:
        path: folder of the converted checkpoint.
        family: family of both.
        dtype: dtype of the weights, in which both were compared.
        bytes: size of the folder.
        memory_difference: largest difference of memory, as a fraction of the original's largest value.
        memory_cosine: least cosine of a vector of memory and the original's.
        logits_difference: the same fraction for the first logits of an answer.
    """

    path: Path
    family: str
    dtype: str
    bytes: int
    memory_difference: float
    memory_cosine: float
    logits_difference: float

    def to_dict(self) -> dict[str, Any]:
        """Return the values for JSON."""
        return asdict(self) | {"path": str(self.path)}


@dataclass(frozen=True)
class _Seen:
    """Input and output of a checkpoint's compressor."""

    passages: list[list[int]]
    memory: Memory


def convert_checkpoint(checkpoint: Checkpoint, out: str | Path, *, dtype: torch.dtype = torch.bfloat16) -> Converted:
    """Write a checkpoint as one folder that needs no base model and no adapters, and compare both.

    Memory keeps its identity: stores of the original are read with the converted checkpoint, and the other way round.
    In bfloat16 and float16, merged weights are rounded, as they are when the original is loaded in that dtype.
    The folder appears when it is complete. The compressor and the decoder are not in memory together.

    Args:
        checkpoint: a checkpoint of family "cocom", "oscar" or "cocom-v1".
        out: a folder that does not exist or is empty.
        dtype: dtype of the weights.

    Raises:
        CheckpointError: the checkpoint is of another family or merged already, ``out`` holds something, or the
            converted checkpoint computes something else than the original.
    """
    if isinstance(checkpoint, MergedCheckpoint):
        raise CheckpointError(f"{checkpoint.path}: is merged already; copy the folder instead.")
    if not isinstance(checkpoint, OnBaseCheckpoint):
        raise CheckpointError(
            f"{checkpoint.path}: a checkpoint of family {checkpoint.family} need not be converted. Its compressor has "
            "all its weights already, so that building needs no base model."
        )
    out = require_new_folder(out)
    # Copies of the checkpoint keep what is read here once: checked files, tokenizers and digests.
    _ = checkpoint.identity
    with draft_folder(out) as draft:
        seen = _write_compressor(checkpoint.unshared(), draft, dtype)
        ids, logits = _write_decoder(checkpoint.unshared(), draft, dtype, seen.memory)
        _write_config(checkpoint, draft)
        converted = _reopen(checkpoint, draft)
        figures = _compare(checkpoint.path, converted, dtype, seen, ids, logits)
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    return Converted(out, checkpoint.family, str(dtype).removeprefix("torch."), size, *figures)


@contextmanager
def draft_folder(out: Path) -> Iterator[Path]:
    """Yield a new folder beside ``out`` that takes its place, or disappears after an error."""
    # A link to an empty folder stays, and the folder is replaced.
    out = out.resolve()
    out.parent.mkdir(parents=True, exist_ok=True)
    draft = out.with_name(f".{out.name}.{os.getpid()}.partial")
    draft.mkdir()
    try:
        yield draft
        draft.rename(out)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise


def _write_compressor(checkpoint: Any, draft: Path, dtype: torch.dtype) -> _Seen:
    model = checkpoint.load_compressor(dtype=dtype)
    if checkpoint.connector is not None:
        _save_tensors(checkpoint.connector.state(), draft / CONNECTOR)
    if isinstance(model, GroupedEncoder):
        _save_tensors(model.projection.state_dict(), draft / CONNECTOR)
        save_finite_model(model.encoder, draft / COMPRESSOR, checkpoint.path)
    elif checkpoint.family != "cocom-v1":
        # Family "cocom-v1" has one adapter: the merged decoder compresses, too.
        _save_compressor(model, draft / COMPRESSOR, checkpoint.path)
    if checkpoint.compressor_tokenizer is not checkpoint.decoder_tokenizer:
        save_tokenizer(checkpoint.compressor_tokenizer, draft / COMPRESSOR)
    return _compress(checkpoint, dtype)


def _save_compressor(model: Any, folder: Path, origin: Path) -> None:
    norm = getattr(model, "norm", None)
    if isinstance(norm, nn.Identity):
        # transformers loads no model without its final norm. OSCAR removes the norm that is loaded.
        table = model.get_input_embeddings().weight
        model.norm = nn.Module()
        model.norm.weight = nn.Parameter(table.new_ones(table.shape[1]), requires_grad=False)
    save_finite_model(model, folder, origin)
    if isinstance(norm, nn.Identity):
        model.norm = norm


def _write_decoder(checkpoint: Any, draft: Path, dtype: torch.dtype, memory: Memory) -> tuple[list[int], torch.Tensor]:
    """Write the decoder, and return the ids of a prompt with the logits after it."""
    model = checkpoint.load_decoder(dtype=dtype)
    # The settings that count are written below. Others may be invalid, and transformers would refuse to save them.
    model.generation_config = GenerationConfig()
    save_finite_model(model, draft / DECODER, checkpoint.path)
    save_tokenizer(checkpoint.decoder_tokenizer, draft / DECODER)
    save_generation(checkpoint.generation, draft / DECODER)
    decoder = Decoder.load(checkpoint, dtype=dtype)
    ids = decoder.prompt_ids(QUESTION, memory.lengths)
    return ids, decoder.logits(ids, memory)[-1]


def save_finite_model(model: Any, folder: Path, origin: Path) -> None:
    """Write a model.

    Raises:
        CheckpointError: a weight is not finite.
    """
    for name, values in model.named_parameters():
        require_finite(f"{origin} in {values.dtype}", name, values)
    save_model(model, folder)


def _save_tensors(state: dict[str, torch.Tensor], folder: Path) -> None:
    folder.mkdir()
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, folder / "model.safetensors")


def save_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Write a tokenizer with its side of padding."""
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    settings = read_json(path) | {"padding_side": tokenizer.padding_side}
    path.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", "utf-8")


def save_generation(generation: GenerationDefaults, folder: Path) -> None:
    """Write the settings of a decoder's generation, as ``read_generation_defaults`` reads them."""
    values = {
        "eos_token_id": list(generation.stop_token_ids),
        "repetition_penalty": generation.repetition_penalty,
    }
    (folder / "generation_config.json").write_text(json.dumps(values, indent=2) + "\n", "utf-8")


def _write_config(checkpoint: Any, draft: Path) -> None:
    values = read_json(checkpoint.path / "config.json")
    # It names code of the original's folder.
    values.pop("auto_map", None)
    values["merged"] = {
        "digests": checkpoint._digests(),
        "files": digest_merged(draft),
        "file_digests": checkpoint._file_digests(),
        "configs": merged_configs(draft),
    }
    (draft / "config.json").write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", "utf-8")


def _reopen(checkpoint: Any, draft: Path) -> Checkpoint:
    options = {key: getattr(checkpoint, key) for key in ("query_extra", "doc_max_length") if hasattr(checkpoint, key)}
    converted = open_checkpoint(draft, **options)
    if converted.identity != checkpoint.identity or converted.generation != checkpoint.generation:
        raise CheckpointError(f"{checkpoint.path}: the converted checkpoint has another identity or other settings.")
    return converted


def _compare(
    origin: Path, converted: Any, dtype: torch.dtype, seen: _Seen, ids: list[int], logits: torch.Tensor
) -> tuple[float, float, float]:
    """Return the differences of memory, its least cosine, and the difference of logits.

    Raises:
        CheckpointError: a difference is larger than rounding makes it.
    """
    found = _compress(converted.unshared(), dtype)
    decoder = Decoder.load(converted.unshared(), dtype=dtype)
    if found.passages != seen.passages or decoder.prompt_ids(QUESTION, seen.memory.lengths) != ids:
        raise CheckpointError(f"{origin}: the written tokenizer gives other tokens than the original's.")
    expected, values = seen.memory.values.float(), found.memory.values.float()
    memory_difference = relative_difference(values, expected)
    logits_difference = relative_difference(decoder.logits(ids, seen.memory)[-1], logits)
    for name, difference in (("memory", memory_difference), ("first logits", logits_difference)):
        # Written so that a NaN fails, too.
        if not difference <= TOLERANCE[dtype]:
            raise CheckpointError(
                f"{origin}: {name} of the converted checkpoint differs by {difference:.2g} from the original's, "
                f"relative to its largest value; at most {TOLERANCE[dtype]:g} is rounding in {dtype}. Nothing was kept."
            )
    return memory_difference, float(torch.cosine_similarity(values, expected, dim=-1).min()), logits_difference


def relative_difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the largest difference as a fraction of the largest expected value."""
    return float((found - expected).abs().max() / expected.abs().max())


def _compress(checkpoint: Any, dtype: torch.dtype) -> _Seen:
    compression = CompressionConfig(on_long="truncate")
    if checkpoint.is_query_dependent:
        documents = checkpoint.query_passages(QUESTION, TEXTS, compression)
    else:
        documents = list(checkpoint.passage_tokenizer(compression).tokenize(TEXTS))
    passages = [passage for document in documents for passage in document.passages]
    return _Seen(passages, Compressor.load(checkpoint, dtype=dtype).compress(passages))
