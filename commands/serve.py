"""The command ``serve``."""

from importlib.util import find_spec
from pathlib import PurePosixPath
from typing import Annotated

import typer

from ..configs import ServeConfig
from ..errors import InputError, StoreError
from ..places import local_path
from .console import count, err, say, say_warnings
from .options import (
    CheckpointDir,
    CompressorBase,
    DecoderBase,
    DecoderDtype,
    Device,
    Given,
    QueryExtra,
    RepetitionPenalty,
    flags_of,
    is_address,
)

_PACKAGES = ("starlette", "uvicorn", "prometheus_client", "httpx")


@flags_of(ServeConfig)
def serve(
    stores: Annotated[
        list[str], typer.Argument(metavar="[NAME=]URI...", help="Stores; the name of the folder is the model's name.")
    ],
    checkpoint: CheckpointDir,
    *,
    given: Given,
    decoder_base: DecoderBase = None,
    compressor_base: CompressorBase = None,
    query_extra: QueryExtra = 64,
    repetition_penalty: RepetitionPenalty = None,
    dtype: DecoderDtype = "bfloat16",
    device: Device = "auto",
) -> None:
    """Answer questions over HTTP as OpenAI's API does, from stored memory, with a page to look at the stores.

    All stores must be built with the checkpoint. SIGHUP, or POST /reload, opens their latest versions; SIGTERM ends the
    server after the questions that it has accepted.

    Example: pisco-index serve index/ -k CHECKPOINT
    """
    config = ServeConfig.parse(given, "serve")
    uris = _named(stores)
    if absent := [name for name in _PACKAGES if find_spec(name) is None]:
        raise InputError(f"a server needs {', '.join(absent)}. Install: pip install 'pisco-index[serve]'")
    from ..model.families import open_checkpoint
    from ..serving.run import Models
    from ..serving.run import serve as run

    def models() -> Models:
        say(f"Loading the checkpoint {checkpoint} …", console=err)
        opened = open_checkpoint(
            checkpoint, decoder_base=decoder_base, compressor_base=compressor_base, query_extra=query_extra
        )
        return Models(opened, dtype, device, repetition_penalty)

    def started(address: str) -> None:
        say(f"{address}: serving {count(len(uris), 'store')} ({', '.join(uris)}). Ctrl-C ends.", console=err)
        if config.open:
            say_warnings(["everyone who reaches this address may use the server: it asks for no key."])

    run(uris, models, config, started=started)


def _named(stores: list[str]) -> dict[str, str]:
    """Return the address of each store by its name.

    Raises:
        InputError: a name is missing or given twice.
        StoreError: a folder does not exist.
    """
    uris: dict[str, str] = {}
    for store in stores:
        name, equals, uri = store.partition("=")
        if not equals or "/" in name:
            name, uri = PurePosixPath(store.rstrip("/")).name, store
        if not is_address(uri) and not (folder := local_path(uri)).exists():
            raise StoreError(f"there is no store at {folder.absolute()}. Check the address, or build the store first.")
        if not name or name in uris:
            fault = f"another store is named {name!r} too" if name else "the store has no name"
            raise InputError(f"{store}: {fault}. Name the store: NAME=URI.")
        uris[name] = uri
    return uris
