"""The commands ``checkpoint new`` and ``checkpoint inspect``."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from .console import Output, Piece, rows, say
from .options import Json


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
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Checkpoint folder.")],
    as_json: Json = False,
) -> None:
    """Open and check every part of a checkpoint, and describe its models, widths and digests."""
    from ..model.families import open_checkpoint

    Output(as_json).show(open_checkpoint(folder).describe(), _described)


def _described(description: Mapping[str, Any]) -> Iterator[Piece]:
    values = {}
    for name, value in description.items():
        entries = value if isinstance(value, dict) else {"": value}
        values |= {f"{name} {key}".rstrip().replace("_", " "): str(entry) for key, entry in entries.items()}
    yield from rows(values)
