"""Embeddings come in the dtype of a decoder, and are the fp32 values rounded, for every codec and stage."""

import numpy as np
import pytest
import torch
from safetensors.torch import save

from pisco_index import Reader
from pisco_index.errors import MissingDocumentsError
from pisco_index.model import device
from pisco_index.model.connector import Connector
from pisco_index.reader import reader as reader_module
from pisco_index.reader import tensors
from pisco_index.store import (
    CODECS,
    CONNECTOR_ASSET,
    Fingerprint,
    Store,
    StoreMeta,
    codec_by_name,
    commit,
    encode_batch,
    memory_rows,
    write_fragment,
)

DIM = 24
LENGTHS = [20, 23, 21, 20, 30]
IDS = [f"doc-{n}" for n in range(len(LENGTHS))]
ASKED = ["doc-3", "doc-1", "doc-3", "doc-4"]


@pytest.fixture(scope="module")
def connector() -> Connector:
    generator = torch.Generator().manual_seed(1)
    shapes = {"0.weight": (32, DIM), "0.bias": (32,), "2.weight": (40, 32), "2.bias": (40,)}
    return Connector.from_state({name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}, "")


@pytest.fixture
def make_store(tmp_path, connector):
    """Make a store whose documents are in the codecs that are named, in turns; return its address."""

    def make(stage, *codecs, connected=True):
        width = connector.dim(stage)
        values = np.random.default_rng(2).standard_normal((sum(LENGTHS), width)).astype(np.float32)
        calibrations = {name: codec_by_name(name).calibrate(values) for name in codecs}
        assets = {each.asset: each.to_bytes() for each in calibrations.values() if each is not None}
        if connected:
            assets[CONNECTOR_ASSET] = save(connector.state())
        meta = StoreMeta(
            fingerprint=Fingerprint({"connector": connector.digest} if connected else {}),
            stage=stage,
            dim=width,
            codec=codecs[0],
            checkpoint={"connector": connected},
            package_version="0.1.0",
        )
        store = Store.create(tmp_path / "store", meta=meta, assets=assets)
        encoded = {name: encode_batch(IDS, values, LENGTHS, codec_by_name(name), calibrations[name]) for name in codecs}
        payloads = [encoded[codecs[i % len(codecs)]][i] for i in range(len(IDS))]
        count = len(IDS)
        rows = memory_rows(
            doc_ids=IDS,
            tokens_total=[1] * count,
            tokens_fed=[1] * count,
            payloads=payloads,
            text_hashes=[bytes(16)] * count,
            errors=[None] * count,
        )
        commit(store, [write_fragment(store.uri, 0, rows)])
        return store.uri

    return make


CASES = [(codec.name,) for codec in CODECS] + [("int8", "bf16"), ("bf16", "fp32")]


@pytest.mark.parametrize("codecs", CASES, ids="+".join)
@pytest.mark.parametrize("stage", ["hidden", "embedding"])
def test_bfloat16_is_the_fp32_path_rounded(make_store, stage, codecs):
    with Reader(make_store(stage, *codecs)) as reader:
        exact, rounded = reader.embeddings(ASKED), reader.embeddings(ASKED, dtype=torch.bfloat16)
        expected = reader.connector.connect(reader.fetch(ASKED))
    assert (exact.values.dtype, rounded.values.dtype) == (torch.float32, torch.bfloat16)
    assert torch.equal(rounded.values, exact.values.bfloat16())
    torch.testing.assert_close(exact.values, expected.values, rtol=1e-4, atol=1e-4)
    for name in ("stage", "lengths", "doc_ids", "connector"):
        assert getattr(rounded, name) == getattr(exact, name) == getattr(expected, name)
    assert rounded.lengths == (20, 23, 20, 30)


@pytest.mark.parametrize("codec", ["bf16", "bf16z"])
def test_stored_bfloat16_is_never_widened(make_store, codec, monkeypatch):
    uri = make_store("embedding", codec, connected=False)
    with Reader(uri) as reader:
        expected = reader.fetch(ASKED).values.bfloat16()

        def fail(_):
            raise AssertionError("the memory was restored to fp32")

        monkeypatch.setattr(tensors, "restored", fail)
        found = reader.embeddings(ASKED, dtype=torch.bfloat16)
    assert torch.equal(found.values, expected)
    assert found.stage == "embedding"


@pytest.mark.parametrize("stage", ["hidden", "embedding"])
def test_no_documents_have_empty_embeddings(make_store, stage):
    with Reader(make_store(stage, "int8")) as reader:
        found = reader.embeddings([], dtype=torch.bfloat16)
    assert (found.values.shape, found.values.dtype, found.stage) == ((0, 40), torch.bfloat16, "embedding")


def test_the_connector_is_folded_once_for_each_calibration(make_store, monkeypatch):
    folds = []
    fold = Connector.fold
    monkeypatch.setattr(Connector, "fold", lambda self, *inverse: folds.append(1) or fold(self, *inverse))
    with Reader(make_store("hidden", "int4")) as reader:
        for dtype in (torch.float32, torch.bfloat16, torch.float32):
            reader.embeddings(ASKED, dtype=dtype)
    assert len(folds) == 1


@pytest.mark.parametrize(("stage", "codec"), [("hidden", "int8"), ("embedding", "bf16")])
def test_embeddings_go_to_the_device_that_is_asked_for(make_store, stage, codec):
    """The device ``meta`` has no bytes, and computes shapes only."""
    with Reader(make_store(stage, codec)) as reader:
        found = reader.embeddings(ASKED, dtype=torch.bfloat16, device="meta")
        assert (found.values.device.type, found.values.dtype) == ("meta", torch.bfloat16)
        assert found.values.shape == (sum(found.lengths), 40)
        assert reader.embeddings(ASKED).values.device.type == "cpu"


@pytest.mark.parametrize(("name", "expected"), [("cuda", ["pinned", ("cuda", True)]), ("cpu", [("cpu", True)])])
def test_a_gpu_gets_pinned_memory_and_is_not_waited_for(name, expected):
    calls = []

    class Tensor:
        def pin_memory(self):
            calls.append("pinned")
            return self

        def to(self, target, non_blocking):
            calls.append((target.type, non_blocking))
            return self

    device.to_device(Tensor(), torch.device(name))
    assert calls == expected


def test_a_gradient_flows_through_a_layer_on_embeddings(make_store):
    layer = torch.nn.Linear(40, 2)
    with Reader(make_store("hidden", "int8")) as reader:
        layer(reader.embeddings(ASKED).values).sum().backward()
    assert layer.weight.grad.abs().sum() > 0


# -- several lists together


LISTS = [["doc-1", "doc-0"], [], ["doc-3"], ["doc-0", "doc-4", "doc-2", "doc-1"], ["doc-1"]]


@pytest.mark.parametrize("together", [1, 3, 160])
def test_lists_that_are_fetched_together_are_each_what_a_fetch_gives(make_store, together, monkeypatch):
    monkeypatch.setattr(reader_module, "_TOGETHER", together)
    with Reader(make_store("hidden", "int8")) as reader:
        found = reader.fetch_many(LISTS)
        assert len(found) == len(LISTS)
        for memory, doc_ids in zip(found, LISTS, strict=True):
            alone = reader.fetch(doc_ids)
            assert torch.equal(memory.values, alone.values)
            assert (memory.doc_ids, memory.lengths, memory.stage) == (alone.doc_ids, alone.lengths, "hidden")
        assert reader.fetch_many([]) == []


def test_missing_ids_of_all_lists_are_named_at_once(make_store, monkeypatch):
    monkeypatch.setattr(reader_module, "_TOGETHER", 2)
    lists = [["doc-1", "nope"], ["doc-0"], ["neither", "doc-2", "doc-2", "nope"]]
    with Reader(make_store("hidden", "bf16")) as reader:
        with pytest.raises(MissingDocumentsError) as caught:
            reader.fetch_many(lists)
        assert caught.value.doc_ids == ("nope", "neither")
        found = reader.fetch_many(lists, missing="skip")
        assert [memory.doc_ids for memory in found] == [("doc-1",), ("doc-0",), ("doc-2", "doc-2")]
        with pytest.raises(TypeError, match="not the string 'doc-1'"):
            reader.fetch_many(["doc-1"])
