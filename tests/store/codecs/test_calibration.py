"""Calibrations are fitted, kept in the store, and found by the payloads that refer to them."""

from dataclasses import fields, replace

import lance
import numpy as np
import pyarrow as pa
import pytest
from safetensors.numpy import save

from pisco_index.errors import CorruptStoreError, StoreError
from pisco_index.store import (
    Calibration,
    Store,
    codec_by_name,
    commit,
    encode_batch,
    memory_rows,
    predict,
    text_hash,
    write_fragment,
)
from pisco_index.store.codecs.calibration import (
    asset_name,
    fit_channels,
    fit_rotation,
    fit_transform,
    gaussian_errors,
    gaussian_levels,
)
from pisco_index.store.schema import ASSETS_SCHEMA

DIM = 8


def sample(vectors=400, dim=DIM, seed=0):
    generator = np.random.default_rng(seed)
    return (generator.standard_normal((vectors, dim)) * np.arange(1, dim + 1) + 3).astype(np.float32)


@pytest.fixture
def calibrated(tmp_path, meta):
    """A store in int8 with ten documents, and their memory."""
    codec, values = codec_by_name("int8"), sample(20)
    calibration = codec.calibrate(values)
    store = Store.create(
        tmp_path / "calibrated",
        meta=meta.model_copy(update={"codec": "int8"}),
        assets={calibration.asset: calibration.to_bytes()},
    )
    ids = [f"doc-{n}" for n in range(10)]
    rows = memory_rows(
        doc_ids=ids,
        tokens_total=[9] * 10,
        tokens_fed=[9] * 10,
        payloads=encode_batch(ids, values, [2] * 10, codec, calibration),
        text_hashes=[text_hash(i) for i in ids],
        errors=[None] * 10,
    )
    commit(store, [write_fragment(store.uri, 0, rows)])
    return store.refresh(), values


def test_channels_are_mean_and_deviation_with_a_floor():
    values = sample()
    values[:, 2] = 5
    found = fit_channels(values)
    np.testing.assert_allclose(found.mean, values.mean(axis=0), rtol=1e-5)
    others = np.arange(DIM) != 2
    np.testing.assert_allclose(found.std[others], values.std(axis=0)[others], rtol=1e-4)
    assert found.std[2] == pytest.approx(0.01 * np.median(values.std(axis=0)), rel=1e-4)


@pytest.mark.parametrize("values", [np.zeros((0, 3)), np.full((1, 3), 2.0), np.full((4, 3), np.nan)])
def test_channels_of_tiny_samples(values):
    found = fit_channels(values)
    assert found.std.tolist() == [1, 1, 1]
    assert found.mean.tolist() == ([2, 2, 2] if np.isfinite(values).any() else [0, 0, 0])


def test_vectors_with_nan_or_infinity_are_ignored():
    values = sample()
    strange = np.concatenate([values, np.full((3, DIM), np.nan, np.float32), np.full((2, DIM), np.inf, np.float32)])
    np.testing.assert_array_equal(fit_channels(strange).std, fit_channels(values).std)
    np.testing.assert_array_equal(fit_transform(strange, 2).transform, fit_transform(values, 2).transform)


def test_the_levels_are_those_of_lloyd_and_max():
    """Against the tables of Max, Quantizing for minimum distortion (1960)."""
    levels = gaussian_levels()
    assert levels.shape == (510,)
    assert levels[:2].tolist() == pytest.approx([-0.7979, 0.7979], abs=1e-4)
    assert levels[2:6].tolist() == pytest.approx([-1.510, -0.4528, 0.4528, 1.510], abs=1e-3)
    assert levels[14 + 8 : 14 + 16].tolist() == pytest.approx(
        [0.1284, 0.3881, 0.6568, 0.9424, 1.256, 1.618, 2.069, 2.733], abs=1e-3
    )
    assert gaussian_errors()[:6].tolist() == pytest.approx([1, 0.3634, 0.1175, 0.03454, 0.009497, 0.002499], rel=3e-3)


@pytest.mark.parametrize("dim", [16, 40, 100])
@pytest.mark.parametrize("bits", [2, 3])
def test_bits_are_spent_where_the_variance_is_and_no_more(dim, bits):
    basis = np.random.default_rng(0).standard_normal((dim, dim)) / np.arange(1, dim + 1)[:, None]
    values = (np.random.default_rng(1).standard_normal((2000, dim)) @ basis).astype(np.float32)
    found = fit_transform(values, bits)
    widths = found.widths.tolist()
    assert widths == sorted(widths, reverse=True)
    assert 0.9 * bits * dim < sum(widths) <= bits * dim
    energies = np.square(found.transform).sum(axis=1)
    assert (np.diff(energies) <= 1e-6).all()
    # Directions are orthogonal, and analysis finds what they were multiplied by.
    numbers = np.random.default_rng(2).standard_normal((5, len(widths))).astype(np.float32)
    np.testing.assert_allclose(numbers @ found.transform @ found.analysis, numbers, atol=1e-3)


def test_a_sample_gives_the_same_calibration_again():
    for fit in (fit_channels, fit_rotation, lambda values: fit_transform(values, 2)):
        assert fit(sample()).reference == fit(sample()).reference != fit(sample(seed=1)).reference


def test_a_calibration_round_trips_through_bytes():
    fisher = codec_by_name("fisher2").calibrate(sample(), np.diag(np.arange(DIM)))
    for made in (fit_channels(sample()), fit_rotation(sample()), fit_transform(sample(), 2), fisher):
        read = Calibration.from_bytes(made.to_bytes())
        assert read.reference == made.reference
        assert read.is_sensitive == (made is fisher)
        for name in [field.name for field in fields(Calibration)]:
            np.testing.assert_array_equal(getattr(read, name), getattr(made, name))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"junk", "cannot be read"),
        (save({"mean": np.zeros(4, np.float32)}), "do not fit together"),
        (save({"mean": np.zeros(4, np.float32), "std": np.ones(3, np.float32)}), "do not fit together"),
        (save({"mean": np.zeros(4, np.float32), "std": np.ones(4, np.float32), "x": np.ones(4)}), "do not fit"),
    ],
)
def test_bytes_that_are_not_a_calibration_are_refused(data, message):
    with pytest.raises(CorruptStoreError, match=message):
        Calibration.from_bytes(data)


def test_a_store_finds_what_its_payloads_refer_to(calibrated):
    store, values = calibrated
    assert store.own_calibration().reference == codec_by_name("int8").calibrate(values).reference
    found, lengths = store.fetch(["doc-7", "doc-0"]).memory()
    assert lengths.tolist() == [2, 2]
    expected = np.concatenate([values[14:16], values[:2]])
    assert np.abs(found - expected).max() < 0.02 * values.std(axis=0).max()


def test_a_store_without_calibration_has_none(store):
    assert store.own_calibration() is None


def test_a_store_that_lost_its_calibration(tmp_path, meta):
    store = Store.create(tmp_path / "lost", meta=meta.model_copy(update={"codec": "int4"}), assets={})
    with pytest.raises(StoreError, match="has codec int4 but no calibration"):
        store.own_calibration()


@pytest.mark.fault(
    "A calibration is missing or damaged.",
    "Reading a payload that refers to it is an error that names it.",
)
def test_a_payload_of_another_store_is_noticed(calibrated):
    store, values = calibrated
    codec = codec_by_name("int8")
    stranger = codec.calibrate(values * 2)
    (payload,) = encode_batch(["new"], values[:2], [2], codec, stranger)
    rows = memory_rows(
        doc_ids=["new"], tokens_total=[1], tokens_fed=[1], payloads=[payload], text_hashes=[bytes(16)], errors=[None]
    )
    commit(store, [write_fragment(store.uri, 1, rows)])
    with pytest.raises(StoreError, match=f"needs {stranger.asset}, which the store at .* lacks; it has calibration/"):
        store.refresh().fetch(["new", "doc-1"]).memory()


@pytest.mark.fault(
    "A calibration is missing or damaged.",
    "Reading a payload that refers to it is an error that names it.",
)
def test_a_damaged_calibration_is_noticed(tmp_path, meta):
    calibration = fit_channels(sample())
    data = bytearray(calibration.to_bytes())
    data[-3] ^= 1
    store = Store.create(tmp_path / "damaged", meta=meta, assets={calibration.asset: bytes(data)})
    with pytest.raises(CorruptStoreError, match=f"{calibration.asset} of the store at .* fails its checksum"):
        store.calibration(calibration.reference)


def test_new_payloads_use_the_first_calibration(calibrated):
    store, _ = calibrated
    other = fit_channels(sample(seed=4))
    lance.write_dataset(
        pa.table([[other.asset], [other.to_bytes()]], schema=ASSETS_SCHEMA), f"{store.uri}/assets.lance", mode="append"
    )
    assert store.own_calibration().reference != other.reference
    assert store.calibration(other.reference).reference == other.reference
    assert asset_name(other.reference) in store.asset_names()


# Prediction


@pytest.mark.parametrize(
    ("name", "bits", "lowest", "highest"), [("int8", 8, -50, -41), ("int4", 4, -22, -19), ("klt2", 2, -30, -8)]
)
def test_a_prediction_is_what_the_codec_then_does(name, bits, lowest, highest):
    codec, values = codec_by_name(name), sample(4096, 64)
    found = predict(codec, values, [8] * 512, codec.calibrate(values))
    assert bits < found.bits_per_value < bits + 1
    assert lowest < found.error_db < highest
    assert found.fallbacks == 0
    assert found.kl is None


def test_no_loss_is_predicted_for_an_exact_codec_or_from_too_small_a_sample():
    values = sample(16)
    exact = predict(codec_by_name("bf16"), values, [16], None)
    assert (exact.error_db, exact.kl, exact.lossy) == (None, None, False)
    klt = codec_by_name("klt2")
    small = predict(klt, values, [16], klt.calibrate(values), is_enough=False)
    assert (small.error_db, small.kl, small.lossy) == (None, None, True)


def test_documents_that_need_another_codec_are_counted():
    codec, values = codec_by_name("int8"), sample(80)
    calibration = replace(codec.calibrate(values), mean=np.zeros(DIM, np.float32))
    values[0] = np.nan
    assert predict(codec, values, [8] * 10, calibration).fallbacks == 0.1
