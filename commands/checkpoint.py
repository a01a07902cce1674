"""The commands ``checkpoint new``, ``inspect``, ``convert`` and ``export-decoder``."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..configs.names import ExportDtype
from .console import Output, Piece, rows, say, size
from .options import CompressorBase, DecoderBase, Json

if TYPE_CHECKING:
    from ..model.families.convert import Converted
    from ..model.families.export_decoder import ExportedDecoder


def new(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="New folder for the checkpoint.")],
    compressor: Annotated[str | None, typer.Option(help="Model folder of the causal LM to compress with.")] = None,
    decoder: Annotated[str | None, typer.Option(help="Model folder of the causal LM to decode with.")] = None,
    tiny: Annotated[
        bool, typer.Option("--tiny", help="Use two tiny random models instead, to try the commands with.")
    ] = False,
    rate: Annotated[int, typer.Option(min=1, help="Compression rate: source tokens per memory token.")] = 16,
    mlp_dim: Annotated[int, typer.Option(min=1, help="Inner width of the connector.")] = 4096,
    lora_rank: Annotated[int, typer.Option(min=1, help="Rank of the decoder's LoRA pairs.")] = 64,
    compressor_name: Annotated[str | None, typer.Option(help="Name to record for the compressor's base.")] = None,
    decoder_name: Annotated[str | None, typer.Option(help="Name to record for the decoder's base.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the random weights.")] = 0,
) -> None:
    """Make an untrained checkpoint from a compressor and a decoder, or a tiny random one.

    Example: pisco-index checkpoint new tiny/ --tiny
    """
    from ..model.create import new_checkpoint
    from ..model.tiny import new_tiny_checkpoint

    if tiny == (compressor is not None or decoder is not None) or (compressor is None) != (decoder is None):
        raise typer.BadParameter("give --compressor and --decoder, or --tiny")
    if compressor is None or decoder is None:
        made = new_tiny_checkpoint(folder, rate=rate, seed=seed)
    else:
        made = new_checkpoint(
            folder,
            compressor,
            decoder,
            rate=rate,
            mlp_dim=mlp_dim,
            lora_rank=lora_rank,
            compressor_name=compressor_name,
            decoder_name=decoder_name,
            seed=seed,
        )
    say(f"{made.path}: untrained checkpoint, rate {made.rate}")


def inspect(
    checkpoint: Annotated[Path, typer.Argument(metavar="FOLDER", help="Checkpoint folder.")],
    decoder_base: DecoderBase = None,
    compressor_base: CompressorBase = None,
    as_json: Json = False,
) -> None:
    """Open and check every part of a checkpoint, and describe its models, widths and digests."""
    from ..model.families import open_checkpoint

    opened = open_checkpoint(checkpoint, decoder_base=decoder_base, compressor_base=compressor_base)
    Output(as_json).show(opened.describe(), _described)


def convert(
    checkpoint: Annotated[Path, typer.Argument(metavar="CHECKPOINT", help="Checkpoint folder.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="New folder for the merged checkpoint.")],
    decoder_base: DecoderBase = None,
    compressor_base: CompressorBase = None,
    dtype: Annotated[
        ExportDtype,
        typer.Option(help="Dtype of the weights. 16 bits round them, as loading the original in 16 bits does."),
    ] = "bfloat16",
    as_json: Json = False,
) -> None:
    """Merge a checkpoint of family cocom, oscar or cocom-v1 into one folder that needs no base model.

    Stores of the original are read with it. Both must compute the same before OUT appears.
    Example: pisco-index checkpoint convert pisco-mistral/ merged/ --base Mistral-7B-Instruct-v0.2/
    """
    import torch

    from ..model.families import open_checkpoint
    from ..model.families.convert import convert_checkpoint

    opened = open_checkpoint(checkpoint, decoder_base=decoder_base, compressor_base=compressor_base)
    Output(as_json).show(convert_checkpoint(opened, out, dtype=getattr(torch, dtype)), _converted)


def export_decoder(
    checkpoint: Annotated[Path, typer.Argument(metavar="CHECKPOINT", help="Checkpoint folder.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="New folder for the decoder.")],
    decoder_base: DecoderBase = None,
    dtype: Annotated[ExportDtype, typer.Option(help="Dtype of the weights, that of the engine.")] = "bfloat16",
    as_json: Json = False,
) -> None:
    """Write a checkpoint's decoder as a plain model folder, for vLLM or SGLang: `serve --engine vllm` uses it.

    The folder is opened again and compared with the checkpoint before it appears.
    Example: pisco-index checkpoint export-decoder CHECKPOINT decoder/
    """
    import torch

    from ..model.families import open_checkpoint
    from ..model.families.export_decoder import export_decoder as export

    opened = open_checkpoint(checkpoint, decoder_base=decoder_base)
    Output(as_json).show(export(opened, out, dtype=getattr(torch, dtype)), _exported)


def _exported(exported: "ExportedDecoder") -> Iterator[Piece]:
    yield from rows(
        {
            "written": f"{exported.path}, {size(exported.bytes)}",
            "dtype": exported.dtype,
            "width": f"{exported.width:,}",
            "first logits": f"differ by {exported.logits_difference:.1g} of their largest value",
        }
    )


def _converted(converted: "Converted") -> Iterator[Piece]:
    yield from rows(
        {
            "written": f"{converted.path}, {size(converted.bytes)}",
            "family": converted.family,
            "dtype": converted.dtype,
            "memory": f"differs by {converted.memory_difference:.1g} of its largest value, "
            f"cosine at least {converted.memory_cosine:.6f}",
            "first logits": f"differ by {converted.logits_difference:.1g} of their largest value",
        }
    )


def _described(description: Mapping[str, Any]) -> Iterator[Piece]:
    values = {}
    for name, value in description.items():
        entries = value if isinstance(value, dict) else {"": value}
        values |= {f"{name} {key}".rstrip().replace("_", " "): str(entry) for key, entry in entries.items()}
    yield from rows(values)
