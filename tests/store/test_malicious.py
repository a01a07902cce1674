"""Stores that somebody made to do harm: an error, little memory, and nothing outside of their folder is touched."""

import json
import os
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

from pisco_index import CorruptStoreError, Reader, StoreError, StoreLockedError
from pisco_index.model.connector import Connector, digest_tensors
from pisco_index.store import Store, StoreMeta, build_lock, commit, decode, write_fragment
from pisco_index.store.codecs import codec_by_name
from pisco_index.store.codecs.calibration import (
    Calibration,
    asset_name,
    fit_channels,
    fit_rotation,
    fit_transform,
    reference_of,
)
from pisco_index.store.codecs.payload import encode
from pisco_index.store.lock import HOLDER_NAME, LOCK_NAME
from pisco_index.store import compact, delete


def snapshot(folder):
    """Everything below a folder, links as they are."""
    return {
        str(path.relative_to(folder)): path.readlink() if path.is_symlink() else path.is_file() and path.read_bytes()
        for path in folder.rglob("*")
    }


def record(codec_id, n_mem, dim, body, doc_id="a"):
    """A payload whose checksums are right, whatever it says."""
    whose = xxhash.xxh3_64_intdigest(doc_id.encode()) & 0xFFFFFFFF
    checked = struct.pack("<2sBBIIII", b"pi", 1, codec_id, n_mem, dim, len(body), whose)
    return checked + struct.pack("<I", zlib.crc32(body, zlib.crc32(checked))) + body


@pytest.mark.parametrize("codec_id", range(1, 8))
@pytest.mark.parametrize(
    ("n_mem", "dim"),
    [(2**32 - 1, 2**32 - 1), (2**31, 2**31), (2**32 - 1, 0), (1, 2**32 - 1), (2**30, 8), (0, 2**32 - 1), (7, 0)],
)
@pytest.mark.parametrize("body", [b"", bytes(4), bytes(64)], ids=len)
def test_a_payload_that_lies_about_its_size(codec_id, n_mem, dim, body):
    calibration = Calibration(np.zeros(8, np.float32), np.ones(8, np.float32))
    with pytest.raises(CorruptStoreError):
        decode(record(codec_id, n_mem, dim, body), "a", lambda reference: calibration)


@pytest.mark.parametrize("codec", ["int4", "klt3", "klt2"])
def test_a_payload_that_refers_to_a_calibration_for_another_codec(codec):
    sample = np.random.default_rng(0).normal(size=(200, 8)).astype(np.float32)
    fitted = fit_rotation(sample) if codec == "int4" else fit_transform(sample, 3)
    payload = encode("a", sample[:4], codec_by_name(codec), fitted)
    assert payload[3] == codec_by_name(codec).codec_id
    with pytest.raises(CorruptStoreError, match="which has no"):
        decode(payload, "a", lambda reference: fit_channels(sample))


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
    ],
    ids=range(16),
)
def test_a_calibration_that_is_none(data):
    with pytest.raises(CorruptStoreError, match="a calibration"):
        Calibration.from_bytes(data)


def test_a_calibration_is_not_believed_for_its_name(tmp_path, meta):
    data = arrays(std=np.full(8, np.nan, np.float32))
    made = Store.create(tmp_path / "s", meta=meta, assets={asset_name(reference_of(data)): data})
    with pytest.raises(CorruptStoreError, match="numbers that none can have"):
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
    """Its digest is right: whoever makes a connector writes that too."""
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
    """What a link in a store leads to is neither written to nor tidied up."""

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
        (tmp_path / "index" / ".pisco-index").symlink_to(outside)
        assert len(filled.fetch(["0-0"]).payloads) == 1
        assert list((tmp_path / "cache").rglob("*.idmap"))

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


@pytest.mark.parametrize("holder", ["[]", "3", "null", "[" * 10**5, '{"pid": 1}', "\xff"])
def test_who_builds_may_be_written_by_anybody(store, tmp_path, holder):
    with build_lock(store.uri):
        (tmp_path / "index" / HOLDER_NAME).write_bytes(holder.encode("latin-1"))
        with pytest.raises(StoreLockedError, match="is being built by"), build_lock(store.uri):
            pass
