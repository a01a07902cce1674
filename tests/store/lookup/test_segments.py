"""A segment finds every row by its hash, takes over the rows of others, and notices damage to its bytes."""

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pisco_index.store.lookup.idmap import hash_of, hashes_of
from pisco_index.store.lookup.segments import DamagedMapError, KeptRows, Part, Segment, UnsortedRows, write_segment

IDS = st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=8), max_size=60)


def bytes_of(parts: dict[str, int], *runs) -> bytes:
    file = io.BytesIO()
    write_segment(file, [Part(key, rows, ()) for key, rows in parts.items()], runs)
    return file.getvalue()


def new_rows(ids: list[str], first: int = 0) -> UnsortedRows:
    return UnsortedRows(hashes_of([each.encode() for each in ids]), np.arange(first, first + len(ids), dtype=np.uint32))


def made_of(*parts: list[str]) -> Segment:
    """A segment of parts "0", "1", … that hold these ids."""
    counts = {str(number): len(ids) for number, ids in enumerate(parts)}
    return Segment(bytes_of(counts, new_rows([doc_id for ids in parts for doc_id in ids])))


def find(segment: Segment, ids: list[str]) -> list[list[int]]:
    found = segment.find([hash_of(each) for each in ids])
    return [[each] if isinstance(each, int) else sorted(each) for each in found]


def expected(ids: list[str], doc_id: str) -> list[int]:
    return [position for position, each in enumerate(ids) if each == doc_id]


@given(IDS, IDS)
def test_every_row_of_an_id_is_found(ids, others):
    assert find(made_of(ids), [*ids, *others]) == [expected(ids, each) for each in [*ids, *others]]


def test_rows_of_many_groups_are_found():
    """From 16,384 rows on, rows are sorted in more than one group."""
    ids = [str(number) for number in range(40_000)]
    assert find(made_of(ids[:100], ids[100:]), [*ids, "absent"]) == [*([each] for each in range(40_000)), []]


@given(st.lists(IDS, min_size=1, max_size=5), IDS, st.data())
def test_a_segment_takes_over_parts_of_another(parts, added, data):
    stays = data.draw(st.lists(st.booleans(), min_size=len(parts), max_size=len(parts)))
    now: list[str] = []
    firsts: list[int | None] = []
    for ids, own in zip(parts, stays, strict=True):
        firsts.append(len(now) if own else None)
        now += ids if own else []
    runs = [KeptRows(made_of(*parts), firsts), new_rows(added, len(now))]
    segment = Segment(bytes_of({"old": len(now), "new": len(added)}, *runs))
    everything = [*added, *(doc_id for part in parts for doc_id in part)]
    assert find(segment, everything) == [expected([*now, *added], each) for each in everything]


SMALL = [f"doc-{i}" for i in range(3000)]
SMALL_BYTES = bytes_of({"a": 3000}, new_rows(SMALL))
ANSWER = find(Segment(SMALL_BYTES), [*SMALL, "absent"])


@settings(max_examples=200)
@given(st.integers(0, len(SMALL_BYTES) - 1), st.integers(1, 255))
def test_a_changed_byte_is_noticed_or_means_nothing(position, change):
    damaged = bytearray(SMALL_BYTES)
    damaged[position] ^= change
    try:
        assert find(Segment(bytes(damaged)), [*SMALL, "absent"]) == ANSWER
    except DamagedMapError:
        return
    # Only padding to the next multiple of eight bytes.
    assert SMALL_BYTES[position] == 0


@given(st.integers(0, len(SMALL_BYTES) - 1))
def test_a_segment_that_is_cut_short_is_noticed(size):
    with pytest.raises(DamagedMapError):
        Segment(SMALL_BYTES[:size])


@given(st.binary(max_size=200))
def test_other_bytes_are_not_a_segment(data):
    for damaged in (data, SMALL_BYTES + data + b"\0", SMALL_BYTES[:24] + data):
        with pytest.raises(DamagedMapError):
            Segment(damaged)


def test_a_block_is_checked_when_it_is_used():
    damaged = bytearray(SMALL_BYTES)
    damaged[-9] ^= 1  # a position in the last block
    opened = Segment(bytes(damaged))
    order = sorted(SMALL, key=hash_of)
    assert find(opened, order[:1]) == find(Segment(SMALL_BYTES), order[:1])
    with pytest.raises(DamagedMapError):
        find(opened, order[-1:])
    with pytest.raises(DamagedMapError):
        KeptRows(opened, [0])


def test_a_segment_takes_less_than_13_bytes_a_row():
    rows = 1_000_000
    hashes = np.random.default_rng(0).integers(0, 1 << 64, rows, dtype=np.uint64)
    assert len(bytes_of({"a": rows}, UnsortedRows(hashes, np.arange(rows, dtype=np.uint32)))) < 13 * rows
