"""The id map finds rows in all segments, chooses them, and keeps them few."""

import io
from itertools import pairwise

import numpy as np
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from pisco_index.store.lookup.idmap import GROWTH, IdMap, first_positions, hash_of, hashes_of, taken_in
from pisco_index.store.lookup.segments import KeptRows, Part, Segment, UnsortedRows, write_segment

IDS = st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=8), min_size=1, max_size=30)


def segment_of(parts: dict[str, list[str]]) -> Segment:
    file = io.BytesIO()
    ids = [doc_id.encode() for each in parts.values() for doc_id in each]
    rows = UnsortedRows(hashes_of(ids), np.arange(len(ids), dtype=np.uint32))
    write_segment(file, [Part(key, len(each), ()) for key, each in parts.items()], [rows])
    return Segment(file.getvalue())


def rows_found(id_map: IdMap, doc_ids: list[str]) -> list[list[tuple[str, int]]]:
    """For each id, part and number in it of the rows that the map finds and that count."""
    places = [
        (part.key, row) if counts else None
        for share in id_map.shares
        for part, counts in zip(share.segment.parts, share.has, strict=True)
        for row in range(part.rows)
    ]
    found = [(each,) if isinstance(each, int) else each for each in id_map.find(doc_ids)]
    return [sorted(filter(None, (places[position] for position in each))) for each in found]


def expected(parts: dict[str, list[str]], doc_ids: list[str]) -> list[list[tuple[str, int]]]:
    return [
        sorted((key, row) for key, ids in parts.items() for row, each in enumerate(ids) if each == doc_id)
        for doc_id in doc_ids
    ]


@given(st.lists(IDS, min_size=1, max_size=5), st.data())
def test_each_row_of_a_version_is_found_once_whatever_the_segments_share(contents, data):
    parts = {str(number): ids for number, ids in enumerate(contents)}
    some_parts = st.sets(st.sampled_from(sorted(parts)), min_size=1)
    segments = [segment_of({key: parts[key] for key in keys}) for keys in data.draw(st.lists(some_parts, max_size=4))]
    wanted = data.draw(some_parts)
    id_map = IdMap(segments, wanted)
    covered = {part.key for segment in segments for part in segment.parts}
    assert id_map.lacking == wanted - covered
    everything = [doc_id for ids in contents for doc_id in ids] + ["absent"]
    there = {key: parts[key] for key in wanted & covered}
    assert rows_found(id_map, everything) == expected(there, everything)


@given(IDS, IDS)
def test_rows_whose_hashes_are_equal_are_all_candidates(ids, others):
    real = xxhash.xxh3_64_intdigest
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(xxhash, "xxh3_64_intdigest", lambda data, seed=0: real(data, seed) % 3 << 62)
        hashes = [hash_of(doc_id) for doc_id in [*ids, *others]]
        id_map = IdMap([segment_of({"a": ids}), segment_of({"b": others})], {"a", "b"})
        for own, found in zip(hashes, rows_found(id_map, [*ids, *others]), strict=True):
            rows = [("a", row) for row in range(len(ids))] + [("b", row) for row in range(len(others))]
            assert found == [place for place, each in zip(rows, hashes, strict=True) if each == own]


def grown(id_map: IdMap, name: str, rows: int, keys: set[str]) -> tuple[IdMap, int]:
    """A map with another fragment, and the number of rows that were written for it."""
    taken = taken_in(id_map, rows)
    parts: list[Part] = []
    runs = []
    begin = 0
    for share in taken:
        own, firsts = first_positions(share, begin)
        parts += own
        runs.append(KeptRows(share.segment, firsts))
        begin += share.rows
    hashes = hashes_of([f"{name}-{row}".encode() for row in range(rows)])
    file = io.BytesIO()
    runs.append(UnsortedRows(hashes, np.arange(begin, begin + rows, dtype=np.uint32)))
    write_segment(file, [*parts, Part(name, rows, ())], runs)
    rest = [share.segment for share in id_map.shares if share not in taken]
    return IdMap([*rest, Segment(file.getvalue())], keys), begin + rows


def test_many_small_updates_leave_few_segments_and_write_little():
    keys: set[str] = set()
    id_map, written, total = IdMap((), keys), 0, 0
    for number in range(200):
        keys.add(str(number))
        rows = 5000 if number == 0 else 10
        id_map, wrote = grown(id_map, str(number), rows, keys)
        total, written = total + rows, written + wrote
        sizes = [share.rows for share in id_map.shares]
        assert all(larger > GROWTH * smaller for larger, smaller in pairwise(sizes))
        assert sum(sizes) == total
    assert written < 6 * total
    assert rows_found(id_map, ["0-4999", "150-3"]) == [[("0", 4999)], [("150", 3)]]


def test_a_segment_of_which_little_is_left_is_taken_in():
    large = segment_of({"gone": [str(row) for row in range(500)], "kept": ["a", "b"]})
    id_map = IdMap([large], {"kept"})
    assert [share.rows for share in id_map.shares] == [2]
    assert taken_in(id_map, 0) == id_map.shares
    after, written = grown(id_map, "new", 1, {"kept", "new"})
    assert written == 3
    assert rows_found(after, ["a", "new-0", "7"]) == [[("kept", 0)], [("new", 0)], []]
