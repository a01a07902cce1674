"""The ids that a store keeps out: documents that no build stores, although its corpus holds them.

They are kept as notes in the assets, one for each change. Applied in the order of their rows, the notes give the ids.
"""

import json
from collections.abc import Iterable
from uuid import uuid4

from ..assets import KEPT_OUT_PREFIX, asset_names
from ..table.addresses import ASSETS
from ..table.datasets import append_assets
from ..table.deletions import open_checked
from ..table.failures import lance_errors


def kept_out(uri: str) -> frozenset[str]:
    """Return the ids that a store keeps out.

    Args:
        uri: resolved address of the store.

    Raises:
        StoreError: the assets cannot be read.
    """
    dataset = open_checked(uri, ASSETS)
    ids: set[str] = set()
    with lance_errors(f"cannot read the assets of the store at {uri}"):
        places = [row for row, name in enumerate(asset_names(dataset)) if name.startswith(KEPT_OUT_PREFIX)]
        for value in dataset.take(places, columns=["value"]).column(0).to_pylist():
            note = json.loads(value)
            ids = (ids | set(note.get("keep_out", ()))) - set(note.get("let_in", ()))
    return frozenset(ids)


def note_kept_out(uri: str, doc_ids: Iterable[str]) -> None:
    """Keep ids out of a store from now on.

    Raises:
        StoreError: the assets cannot be written.
    """
    _note(uri, "keep_out", doc_ids)


def note_let_in(uri: str, doc_ids: Iterable[str]) -> None:
    """Keep ids out of a store no longer.

    Raises:
        StoreError: the assets cannot be written.
    """
    _note(uri, "let_in", doc_ids)


def _note(uri: str, change: str, doc_ids: Iterable[str]) -> None:
    if ids := list(doc_ids):
        with lance_errors(f"cannot note in the store at {uri} which documents it keeps out"):
            append_assets(uri, {f"{KEPT_OUT_PREFIX}{uuid4().hex}": json.dumps({change: ids}).encode()})
