"""Read the documents of a planned shard."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from ...corpus import Document, OnRejected, Source, open_source
from ...errors import CorpusError
from .plan import Shard


def open_sources(specs: Iterable[Mapping[str, Any]]) -> tuple[Source, ...]:
    """Open the sources of a plan in the process that reads them."""
    return tuple(open_source(spec) for spec in specs)


def read_shard(shard: Shard, sources: Sequence[Source], on_rejected: OnRejected = bool) -> Iterator[Document]:
    """Yield the documents of a shard, in order.

    Args:
        shard: shard to read.
        sources: sources of its plan.
        on_rejected: callback for each record of the slices that the plan rejected. Of the shards that share a record,
            the first one reports them.

    Raises:
        CorpusError: the corpus cannot be read, or its slices hold more or fewer documents than were planned.
    """
    share = shard.share
    if share is None:
        yield from _selected(shard, sources, on_rejected)
    else:
        documents = list(_selected(shard, sources, on_rejected if share.number == 0 else bool))
        yield from documents[share.of(len(documents))]


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
