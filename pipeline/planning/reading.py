"""Read the documents of a planned shard."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from ...corpus import Document, OnRejected, RejectedRecord, Source, open_source
from ...errors import CorpusError
from .plan import Shard


def open_sources(specs: Iterable[Mapping[str, Any]]) -> tuple[Source, ...]:
    """Open the sources of a plan in the process that reads them."""
    return tuple(open_source(spec) for spec in specs)


class Shared:
    """The documents of the last record that shards shared. A process that reads its shards reads the record once."""

    def __init__(self) -> None:
        # Assigned at once, because threads may read with the same one.
        self._kept: tuple[Shard | None, list[Document], list[RejectedRecord]] = None, [], []

    def read(self, shard: Shard, sources: Sequence[Source]) -> tuple[list[Document], list[RejectedRecord]]:
        """Return all documents of a shared record, and the rejected records in its slices."""
        kept, documents, rejected = self._kept
        if kept is None or (kept.slices, kept.selection) != (shard.slices, shard.selection):
            rejected = []
            documents = list(_selected(shard, sources, rejected.append))
            self._kept = shard, documents, rejected
        return documents, rejected

    def forget(self) -> None:
        """Free the documents."""
        self._kept = None, [], []


def read_shard(
    shard: Shard, sources: Sequence[Source], on_rejected: OnRejected = bool, shared: Shared | None = None
) -> Iterator[Document]:
    """Yield the documents of a shard, in order.

    Args:
        shard: shard to read.
        sources: sources of its plan.
        on_rejected: callback for each record of the slices that the plan rejected. Of the shards that share a record,
            the first one reports them.
        shared: what the process keeps of shared records; default: nothing.

    Raises:
        CorpusError: the corpus cannot be read, or its slices hold more or fewer documents than were planned.
    """
    shared = shared or Shared()
    if shard.share is None:
        shared.forget()
        yield from _selected(shard, sources, on_rejected)
        return
    documents, rejected = shared.read(shard, sources)
    for record in rejected if shard.share.number == 0 else ():
        on_rejected(record)
    yield from documents[shard.share.of(len(documents))]


def _selected(shard: Shard, sources: Sequence[Source], on_rejected: OnRejected) -> Iterator[Document]:
    """Yield the selected documents of a shard's slices."""
    documents = (
        document for part in shard.slices for document in sources[part.source].read(part.start, part.stop, on_rejected)
    )
    if shard.selection is None:
        yield from documents
        return
    chosen = shard.selection.chosen
    count = 0
    for document in documents:
        if count < len(chosen) and chosen[count]:
            yield document
        count += 1
    if count != len(chosen):
        names = ", ".join(dict.fromkeys(sources[part.source].name for part in shard.slices))
        raise CorpusError(
            f"shard {shard.number} was planned from {len(chosen)} documents, but {names} now has {count} there. "
            "The corpus changed while it was read: run the build again."
        )
