"""Stores that were made to do harm end in an error, take little memory, and touch nothing outside their folder."""

import itertools
import json
import os
import shutil
import struct
import time
import zlib
from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest
import xxhash
from safetensors.numpy import save
from safetensors.torch import load as load_tensors

from pisco_index import Reader
from pisco_index.errors import CorruptStoreError, StoreError, StoreLockedError
from pisco_index.model.connector import Connector, digest_tensors
from pisco_index.store import (
    Store,
    StoreMeta,
    build_lock,
    commit,
    compact,
    decode,
    delete,
    describe,
    lock,
    write_fragment,
)
from pisco_index.store.codecs import codec_by_id, codec_by_name
from pisco_index.store.codecs.calibration import (
    Calibration,
    asset_name,
    fit_channels,
    fit_transform,
    reference_of,
)
from pisco_index.store.codecs.payload import encode
from pisco_index.store.lock import HOLDER_NAME, LOCK_NAME


def snapshot(folder):
    """Return the contents of all files below a folder, and the targets of links."""
    return {
        str(path.relative_to(folder)): path.readlink() if path.is_symlink() else path.is_file() and path.read_bytes()
        for path in folder.rglob("*")
    }


def record(codec_id, n_mem, dim, body, doc_id="a"):
    """Make a payload whose checksums are right, whatever else it says."""
    whose = xxhash.xxh3_64_intdigest(doc_id.encode()) & 0xFFFFFFFF
    checked = struct.pack("<2sBBIIII", b"pi", 1, codec_id, n_mem, dim, len(body), whose)
    return checked + struct.pack("<I", zlib.crc32(body, zlib.crc32(checked))) + body


SIZES = [(2**32 - 1, 2**32 - 1), (2**31, 2**31), (2**32 - 1, 0), (1, 2**32 - 1), (2**30, 8), (0, 2**32 - 1), (7, 0)]


@pytest.mark.fault(
    "A store's links lead out of it, or its payloads lie about their sizes.",
    "It is an error, and nothing outside is touched.",
)
@pytest.mark.parametrize("codec_id", range(1, 11))
def test_a_payload_that_lies_about_its_size(codec_id):
    calibration = Calibration(np.zeros(8, np.float32), np.ones(8, np.float32))
    if codec_id > 5:
        calibration = codec_by_id(codec_id).calibrate(np.random.default_rng(0).standard_normal((200, 8), np.float32))
    for (n_mem, dim), length in itertools.product(SIZES, (0, 4, 64)):
        with pytest.raises(CorruptStoreError):
            decode(record(codec_id, n_mem, dim, bytes(length)), "a", lambda reference: calibration)


@pytest.mark.parametrize("codec", ["int4", "klt3", "klt2", "fisher3"])
def test_a_payload_that_refers_to_a_calibration_for_another_codec(codec):
    sample = np.random.default_rng(0).normal(size=(200, 8)).astype(np.float32)
    fitted = codec_by_name(codec).calibrate(sample)
    payload = encode("a", sample[:4], codec_by_name(codec), fitted)
    assert payload[3] == codec_by_name(codec).codec_id
    with pytest.raises(CorruptStoreError, match="which has no"):
        decode(payload, "a", lambda reference: fit_channels(sample))
    if codec == "fisher3":
        with pytest.raises(CorruptStoreError, match="which has no energies"):
            decode(payload, "a", lambda reference: fit_transform(sample, 3))


WHOLE = {
    "transform": np.eye(8, dtype=np.float32),
    "widths": np.array([4, 4, 3, 2, 1, 0, 0, 0], np.uint8),
    "energies": np.ones(8, np.float32),
    "limit": np.ones(1, np.float32),
}


def arrays(**changes):
    good = {"mean": np.zeros(8, np.float32), "std": np.ones(8, np.float32)} | changes
    return save({name: value for name, value in good.items() if value is not None})


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff" * 64,
        struct.pack("<Q", 2**62) + b"{}",
        arrays(mean=np.zeros((8, 10**3), np.float32)),
        arrays(std=np.zeros(8, np.float32)),
        arrays(std=np.full(8, -1, np.float32)),
        arrays(std=np.full(8, np.nan, np.float32)),
        arrays(mean=np.full(8, np.inf, np.float32)),
        arrays(mean=np.zeros(8, np.int64)),
        arrays(mean=np.zeros(8, np.float64)),
        arrays(signs=np.ones(8, np.float32)),
        arrays(transform=np.ones((1, 8), np.float32), widths=np.array([200], np.uint8)),
        arrays(transform=np.ones((1, 8), np.float32), widths=np.array([0], np.uint8)),
        arrays(transform=np.ones((1, 8), np.float32), widths=np.array([3], np.int64)),
        arrays(std=None),
        arrays(other=np.zeros(8, np.float32)),
        arrays(**WHOLE | {"limit": None}),
        arrays(**WHOLE | {"energies": None, "widths": np.ones(8, np.uint8)}),
        arrays(**WHOLE | {"energies": np.zeros(8, np.float32)}),
        arrays(**WHOLE | {"widths": np.arange(8, dtype=np.uint8)}),
        arrays(**WHOLE | {"dual": np.ones((8, 7), np.float32)}),
        arrays(**WHOLE | {"dual": np.full((8, 8), np.nan, np.float32)}),
        arrays(energies=np.ones(0, np.float32), limit=np.ones(1, np.float32)),
        arrays(dual=np.eye(8, dtype=np.float32), transform=np.eye(8, dtype=np.float32), widths=np.ones(8, np.uint8)),
    ],
    ids=range(24),
)
def test_a_calibration_that_is_none(data):
    with pytest.raises(CorruptStoreError, match="a calibration"):
        Calibration.from_bytes(data)


def test_a_basis_of_the_whole_space_is_a_calibration():
    assert not Calibration.from_bytes(arrays(**WHOLE)).is_sensitive
    assert Calibration.from_bytes(arrays(**WHOLE, dual=np.eye(8, dtype=np.float32))).is_sensitive


def test_a_calibration_is_not_believed_for_its_name(tmp_path, meta):
    data = arrays(std=np.full(8, np.nan, np.float32))
    made = Store.create(tmp_path / "s", meta=meta, assets={asset_name(reference_of(data)): data})
    with pytest.raises(CorruptStoreError, match="values or dtypes that no calibration can have"):
        made.calibration(reference_of(data))


def connector_asset(first=(16, 8), second=(12, 16), **changes):
    tensors = {
        "0.weight": np.ones(first, np.float32),
        "0.bias": np.ones(first[0], np.float32),
        "2.weight": np.ones(second, np.float32),
        "2.bias": np.ones(second[0], np.float32),
    }
    return save(tensors | changes)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        struct.pack("<Q", 2**62) + b"{}",
        struct.pack("<Q", 74) + b'{"0.weight":{"dtype":"F32","shape":[1000000000000],"data_offsets":[0,4]}}     ',
        connector_asset(**{"0.bias": np.full(16, np.nan, np.float32)}),
        connector_asset(**{"0.bias": np.ones(16, np.int64)}),
        connector_asset(**{"0.bias": np.ones(16, np.complex64)}),
        connector_asset(first=(16, 4)),
        connector_asset(first=(16, 10**4)),
    ],
    ids=range(8),
)
def test_a_connector_that_does_not_fit_the_store(tmp_path, meta, content):
    """The digest is right, because whoever makes a connector also writes its digest."""
    digest = "none can be computed"
    with suppress(Exception):
        digest = digest_tensors({name: each.float() for name, each in load_tensors(content).items()})
    fingerprint = replace(meta.fingerprint, components={**meta.fingerprint.components, "connector": digest})
    made = meta.model_copy(update={"fingerprint": fingerprint})
    Store.create(tmp_path / "s", meta=made, assets={"connector.safetensors": content})
    with Reader(tmp_path / "s") as reader, pytest.raises(CorruptStoreError, match="connector"):
        assert isinstance(reader.connector, Connector)


@pytest.mark.parametrize(
    "change",
    [
        {"dim": 10**12},
        {"dim": 0},
        {"dim": -8},
        {"codec": "../../x"},
        {"optional_columns": ["payload"]},
        {"optional_columns": ["__import__('os')"]},
        {"stage": "other"},
        {"format_version": "1e400"},
        {"format_version": None},
        {"fingerprint": []},
        {"checkpoint": 3},
    ],
    ids=str,
)
def test_a_description_that_is_none(meta, change):
    values = json.loads(meta.to_json()) | change
    with pytest.raises(StoreError):
        StoreMeta.from_json(json.dumps(values).encode(), "the store")


@pytest.mark.parametrize("content", [b"[" * 10**6, b'{"a":' * 10**6, b"\xff", b"null", b"[]", b'{"format_version": 1}'])
def test_a_description_that_is_no_json(content):
    with pytest.raises(StoreError, match=r"^the store: the store's description"):
        StoreMeta.from_json(content, "the store")


class TestLinks:
    """The target of a link in a store is neither written to nor deleted."""

    @pytest.fixture
    def outside(self, tmp_path):
        folder = tmp_path / "outside"
        folder.mkdir()
        for name in ("precious", "old.tmp", "a.idmap", "b.idmap", "c.idmap", "some.lance", "1.manifest"):
            (folder / name).write_text(name)
            os.utime(folder / name, (time.time() - 10**6,) * 2)
        before = snapshot(folder)
        yield folder
        assert snapshot(folder) == before

    @pytest.fixture
    def filled(self, store, shard_rows):
        commit(store, [write_fragment(store.uri, 0, shard_rows(0))])
        return store.refresh()

    def test_for_maps_of_ids(self, filled, outside, tmp_path, monkeypatch):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        shutil.rmtree(tmp_path / "index" / ".pisco-index")
        (tmp_path / "index" / ".pisco-index").symlink_to(outside)
        assert len(filled.fetch(["0-0"]).payloads) == 1
        assert list((tmp_path / "cache").rglob("*.idmap"))

    def test_for_the_totals(self, filled, outside, tmp_path, monkeypatch):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        cache = next((tmp_path / "index" / ".pisco-index").glob("totals-*"))
        cache.unlink()
        cache.symlink_to(outside / "precious")
        assert describe(filled.refresh()).documents == 5
        delete(filled.uri, ["0-1"])
        assert describe(filled.refresh()).documents == 4

    def test_for_the_name_of_who_builds(self, filled, outside, tmp_path):
        (tmp_path / "index" / HOLDER_NAME).symlink_to(outside / "precious")
        with build_lock(filled.uri):
            assert json.loads((tmp_path / "index" / HOLDER_NAME).read_text())["pid"] == os.getpid()
        with build_lock(filled.uri):
            (tmp_path / "index" / HOLDER_NAME).unlink()
            (tmp_path / "index" / HOLDER_NAME).symlink_to(outside / "precious")

    def test_for_the_lock(self, filled, outside, tmp_path):
        (tmp_path / "index" / LOCK_NAME).unlink(missing_ok=True)
        (tmp_path / "index" / LOCK_NAME).symlink_to(outside / "precious")
        with pytest.raises(StoreError, match="cannot lock"), build_lock(filled.uri):
            pass

    @pytest.mark.fault(
        "A store's links lead out of it, or its payloads lie about their sizes.",
        "It is an error, and nothing outside is touched.",
    )
    @pytest.mark.parametrize(
        "name", ["memory.lance", "memory.lance/data", "memory.lance/_versions", "assets.lance/data"]
    )
    @pytest.mark.parametrize("work", [lambda uri: compact(uri, older_than_hours=0), lambda uri: delete(uri, ["0-0"])])
    def test_for_a_table(self, filled, outside, tmp_path, name, work):
        place = tmp_path / "index" / name
        place.rename(tmp_path / "moved")
        place.symlink_to(tmp_path / "moved")
        before = snapshot(tmp_path / "moved")
        with pytest.raises(StoreError, match=f"{name} is a link"):
            work(filled.uri)
        assert snapshot(tmp_path / "moved") == before

    def test_a_store_may_be_a_link_itself(self, filled, outside, tmp_path):
        (tmp_path / "link").symlink_to(tmp_path / "index")
        delete(tmp_path / "link", ["0-0"])
        compact(tmp_path / "link", older_than_hours=0)
        assert Store.open(tmp_path / "link").count == 4


def test_the_description_of_a_holder_may_be_anything(store, tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "GRACE_S", 0)
    with build_lock(store.uri):
        for holder in (b"[]", b"3", b"null", b"[" * 10**5, b'{"pid": 1}', b"\xff"):
            (tmp_path / "index" / HOLDER_NAME).write_bytes(holder)
            with pytest.raises(StoreLockedError, match="is being changed by another process"), build_lock(store.uri):
                pass
