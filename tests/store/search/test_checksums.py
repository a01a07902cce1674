"""Damage in the files of the index is found by its checksums, and never copied into a new index."""

from pathlib import Path

import pytest

from pisco_index.configs import SearchConfig
from pisco_index.store import compact, keep_index, search_index
from pisco_index.store.search.checksums import damaged_files, read_notes
from pisco_index.store.search.keep import is_damaged

from .conftest import require_found


@pytest.fixture
def ids(store, add):
    ids = add(store, 0, 100)
    keep_index(store.uri, SearchConfig(language="Dutch"))
    return ids


def files_of(store) -> list[Path]:
    (segment,) = search_index(store.refresh().table).segments
    return sorted((Path(store.uri) / "memory.lance" / "_indices" / segment).iterdir())


def damage(store) -> list[tuple[str, str]]:
    return list(damaged_files(store.uri, search_index(store.refresh().table), read_notes(store.uri)))


def flip(path: Path, at: int | None = None) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2 if at is None else at] ^= 4
    path.write_bytes(content)


@pytest.mark.fault(
    "A file of the search index is damaged or lost.",
    "`verify` names it, and `repair` makes the index anew; no merge and no compaction copies the damage.",
)
def test_every_kind_of_damage_is_found(store, ids):
    assert len(files_of(store)) == 4
    assert not damage(store)
    for path in files_of(store):
        whole = path.read_bytes()
        for at in (0, len(whole) // 2, len(whole) - 1):
            flip(path, at)
            ((file, what),) = damage(store)
            assert (Path(file).name, what) == (path.name, "fails its checksum.")
            path.write_bytes(whole)
        path.write_bytes(whole[:-1])
        assert damage(store) == [(file, f"has {len(whole) - 1:,} bytes and not {len(whole):,}.")]
        path.unlink()
        assert damage(store) == [(file, "is missing.")]
        path.write_bytes(whole)
    assert not damage(store)
    for path in files_of(store):
        path.unlink()
    index = search_index(store.refresh().table)
    assert list(damaged_files(store.uri, index, {})) == [(f"_indices/{index.segments[0]}", "is missing.")]


@pytest.mark.parametrize("is_lost", [False, True])
def test_damage_is_not_merged(store, ids, add, is_lost):
    path = files_of(store)[1]
    path.unlink() if is_lost else flip(path)
    ids += add(store, 1, 50)
    assert keep_index(store.uri).action == "rebuilt"
    assert search_index(store.refresh().table).settings.language == "Dutch"
    require_found(store.refresh(), ids)


@pytest.mark.parametrize("is_lost", [False, True])
def test_damage_is_not_compacted(store, ids, add, is_lost):
    ids += add(store, 1, 5)
    path = files_of(store)[2]
    path.unlink() if is_lost else flip(path)
    compact(store.uri)
    index = search_index(store.refresh().table)
    assert (index.settings.language, index.is_in_step) == ("Dutch", True)
    assert not is_damaged(store.uri, index)
    require_found(store.refresh(), ids)
