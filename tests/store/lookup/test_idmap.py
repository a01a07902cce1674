"""The id map finds every row by its hash, and notices damage to its bytes."""

import numpy as np
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from pisco_index.store.lookup.idmap import DamagedMapError, IdMap, Segment, encode_map, extend, hash_of, hashes_of

IDS = st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=8), max_size=60)


def segment(name: str, rows: int) -> Segment:
    return Segment(name, rows, ())


def map_of(segments, *rest) -> IdMap:
    return IdMap(b"".join(encode_map(segments, *rest)))


def made_of(*parts: list[str]) -> IdMap:
    """A map of segments "0", "1", … that hold these ids."""
    segments = [segment(str(number), len(ids)) for number, ids in enumerate(parts)]
    return map_of(*extend(None, (), segments, hashes_of([i.encode() for ids in parts for i in ids])))


def positions(found) -> list[int]:
    return [found] if isinstance(found, int) else sorted(found)


def expected(ids: list[str], doc_id: str) -> list[int]:
    return [position for position, each in enumerate(ids) if each == doc_id]


@given(IDS, IDS)
def test_every_row_of_an_id_is_found(ids, others):
    found = made_of(ids).find([*ids, *others])
    assert [positions(each) for each in found] == [expected(ids, each) for each in [*ids, *others]]


@given(IDS)
def test_rows_whose_hashes_are_equal_are_all_candidates(ids):
    hashes = {doc_id: hash_of(doc_id) % 3 << 62 for doc_id in ids}
    real = xxhash.xxh3_64_intdigest
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(xxhash, "xxh3_64_intdigest", lambda data, seed=0: real(data, seed) % 3 << 62)
        for doc_id, found in zip(ids, made_of(ids).find(ids), strict=True):
            assert positions(found) == [i for i, each in enumerate(ids) if hashes[each] == hashes[doc_id]]


@given(st.lists(IDS, min_size=1, max_size=5), st.data())
def test_an_extended_map_is_that_of_the_segments_it_has_now(parts, data):
    names = [str(number) for number in range(len(parts))]
    known = data.draw(st.sets(st.sampled_from(names)))
    dropped = data.draw(st.sets(st.sampled_from(names)))
    before = sorted(known | dropped, key=int)
    base = map_of(*built({name: parts[int(name)] for name in before}))
    added = {name: parts[int(name)] for name in names if name not in before}
    now = [name for name in before if name not in dropped] + list(added)
    extended = map_of(*built(added, base, set(now)))
    assert [each.key for each in extended.segments] == now
    ids = [doc_id for name in now for doc_id in parts[int(name)]]
    everything = [doc_id for part in parts for doc_id in part]
    found = extended.find(everything)
    assert [positions(each) for each in found] == [expected(ids, each) for each in everything]


def built(parts: dict[str, list[str]], base: IdMap | None = None, kept=()):
    hashes = hashes_of([doc_id.encode() for ids in parts.values() for doc_id in ids])
    return extend(base, kept, [segment(name, len(ids)) for name, ids in parts.items()], hashes)


SMALL = [f"doc-{i}" for i in range(3000)]
SMALL_BYTES = b"".join(encode_map(*built({"a": SMALL})))
ANSWER = IdMap(SMALL_BYTES).find([*SMALL, "absent"])


@settings(max_examples=200)
@given(st.integers(0, len(SMALL_BYTES) - 1), st.integers(1, 255))
def test_a_changed_byte_is_noticed_or_means_nothing(position, change):
    damaged = bytearray(SMALL_BYTES)
    damaged[position] ^= change
    try:
        assert IdMap(bytes(damaged)).find([*SMALL, "absent"]) == ANSWER
    except DamagedMapError:
        return
    # Only padding to the next multiple of eight bytes.
    assert SMALL_BYTES[position] == 0


@given(st.integers(0, len(SMALL_BYTES) - 1))
def test_a_map_that_is_cut_short_is_noticed(size):
    with pytest.raises(DamagedMapError):
        IdMap(SMALL_BYTES[:size])


@given(st.binary(max_size=200))
def test_other_bytes_are_not_a_map(data):
    for damaged in (data, SMALL_BYTES + data + b"\0", SMALL_BYTES[:24] + data):
        with pytest.raises(DamagedMapError):
            IdMap(damaged)


def test_a_block_is_checked_when_it_is_used():
    damaged = bytearray(SMALL_BYTES)
    damaged[-9] ^= 1  # a position in the last block
    opened = IdMap(bytes(damaged))
    order = sorted(SMALL, key=hash_of)
    assert opened.find(order[:1]) == IdMap(SMALL_BYTES).find(order[:1])
    with pytest.raises(DamagedMapError):
        opened.find(order[-1:])


def test_a_map_takes_less_than_13_bytes_a_row():
    rows = 1_000_000
    hashes = np.random.default_rng(0).integers(0, 1 << 64, rows, dtype=np.uint64)
    size = sum(memoryview(piece).nbytes for piece in encode_map(*extend(None, (), [segment("a", rows)], hashes)))
    assert size < 13 * rows
