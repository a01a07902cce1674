"""The error about ids that a store does not hold, with the passages that may be meant."""

from collections.abc import Callable, Sequence, Set

from ...errors import MissingDocumentsError, some

# Largest number of missing ids whose passages are looked for, and of passages that are counted.
_SEARCHED, _MOST_PASSAGES = 10, 1 << 12


def absent_error(uri: str, doc_ids: Sequence[str], held: Callable[[Sequence[str]], Set[str]]) -> MissingDocumentsError:
    """Return the error about missing ids. If the store holds passages of one of them, its message names them.

    Args:
        uri: address of the store.
        doc_ids: the missing ids.
        held: function that returns those of the given ids that the store holds.
    """
    shown = [each for doc_id in doc_ids[:_SEARCHED] if (each := _passages(doc_id, held))]
    passages = f" It holds passages of them: {'; '.join(shown)}." if shown else ""
    return MissingDocumentsError(
        f"the store at {uri} does not hold {len(doc_ids)} of the requested documents: {some(doc_ids)}.{passages} "
        f'Check the ids (pisco-index ids {uri} lists them), or skip them (in Python, missing="skip").',
        doc_ids,
    )


def _passages(doc_id: str, held: Callable[[Sequence[str]], Set[str]]) -> str | None:
    """Return the ids of the passages that a document was cut into, as ``corpus/split.py`` names them, in words."""
    count, step = 0, 8
    while count < _MOST_PASSAGES:
        ids = [f"{doc_id}#{number}" for number in range(count, count + step)]
        found = held(ids)
        count += next((place for place, each in enumerate(ids) if each not in found), step)
        if len(found) < step:
            break
        step *= 2
    first, last = f"{doc_id}#0", f"{doc_id}#{count - 1}"
    return {0: None, 1: repr(first)}.get(count, f"{first!r} … {last!r}")
