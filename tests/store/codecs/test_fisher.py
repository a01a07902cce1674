"""The fisher codecs lose less of what a decoder notices than klt does, and no vector is lost for being far away."""

import numpy as np
import pytest

from pisco_index.errors import CorruptStoreError
from pisco_index.store import (
    CODECS,
    Calibration,
    MemorySample,
    codec_by_id,
    codec_by_name,
    decode_batch,
    encode_batch,
    fit,
    uses_sensitivity,
)
from pisco_index.store.codecs.codec import Bodies
from pisco_index.store.codecs.metric import errors_in_metric, fit_metric

DIM = 48
RNG = np.random.default_rng(0)
SCALES = np.exp(RNG.normal(0, 1, DIM))
SCALES[[3, 20]] *= 50
MIX = np.linalg.qr(RNG.standard_normal((DIM, DIM)))[0] * np.arange(1, DIM + 1)[:, None] ** -0.5
NOTICED = np.linalg.qr(RNG.standard_normal((DIM, DIM)))[0]
SENSITIVITY = (NOTICED * np.arange(1, DIM + 1) ** -1.5) @ NOTICED.T / np.outer(SCALES, SCALES)


def memory(vectors, seed, heavy=0.0):
    """Memory with a spectrum and outlier channels; a share of the vectors is far out in a direction that matters."""
    generator = np.random.default_rng(seed)
    values = generator.standard_normal((vectors, DIM)) @ MIX
    far = generator.random(vectors) < heavy
    values[far] += 4 * generator.standard_normal((far.sum(), 2)) @ NOTICED.T[:2]
    return (values * SCALES).astype(np.float32)


SAMPLE = memory(4096, 1)


def fitted(name, sensitivity=SENSITIVITY, sample=SAMPLE):
    return codec_by_name(name).calibrate(sample, sensitivity)


def through(name, values, calibration):
    """Encode and decode documents of 8 vectors: the memory, the records, and each document's error in the metric."""
    lengths = [8] * (len(values) // 8)
    payloads = encode_batch([""] * len(lengths), values, lengths, codec_by_name(name), calibration)
    decoded, _ = decode_batch(payloads, None, lambda _: calibration)
    lost = (values - decoded).astype(np.float64)
    return decoded, payloads, np.einsum("ij,jk,ik->i", lost, SENSITIVITY, lost).reshape(-1, 8).mean(axis=1)


def far_in(payload):
    return (np.frombuffer(payload, "<f2", 8, 28) < 0).sum()


def decibels(errors):
    return 10 * np.log10(np.mean(errors))


def test_these_codecs_use_the_sensitivity():
    assert [codec.name for codec in CODECS if uses_sensitivity(codec)] == ["fisher4", "fisher3", "fisher2"]


@pytest.mark.parametrize("bits", [2, 3])
def test_a_third_of_the_error_that_matters_is_left_at_equal_bytes(bits):
    values = memory(4096, 2)
    _, klt, klt_errors = through(f"klt{bits}", values, fitted(f"klt{bits}"))
    _, fisher, errors = through(f"fisher{bits}", values, fitted(f"fisher{bits}"))
    assert sum(map(len, fisher)) <= sum(map(len, klt))
    assert decibels(errors) < decibels(klt_errors) - 4.8


@pytest.mark.parametrize("name", ["fisher4", "fisher3", "fisher2"])
def test_without_a_sensitivity_it_is_klt_and_says_so(name):
    assert fitted(name).is_sensitive
    for sensitivity in (None, np.zeros((DIM, DIM))):
        alike = fitted(name, sensitivity)
        assert not alike.is_sensitive
        np.testing.assert_array_equal(alike.transform, fit_metric(SAMPLE).transform)
    if name != "fisher4":
        klt = codec_by_name(f"klt{name[-1]}").calibrate(SAMPLE)
        errors = [through(each, SAMPLE, c)[2] for each, c in ((klt_name(name), klt), (name, alike))]
        assert decibels(errors[1]) == pytest.approx(decibels(errors[0]), abs=0.5)


def klt_name(name):
    return name.replace("fisher", "klt")


@pytest.mark.parametrize("name", ["fisher4", "fisher3", "fisher2"])
def test_vectors_that_are_far_away_are_kept(name):
    """They are in no sample: only the limit can catch them."""
    values, calibration = memory(4096, 3, heavy=0.02), fitted(name)
    _, payloads, errors = through(name, values, calibration)
    assert 0.005 < sum(map(far_in, payloads)) / len(values) < 0.03
    assert {codec_by_id(payload[3]).name for payload in payloads} == {name}
    _, _, other = through(
        "int4" if name == "fisher4" else klt_name(name), values, fitted("int4" if name == "fisher4" else klt_name(name))
    )
    assert errors.max() < other.max() / 2
    _, _, ordinary = through(name, memory(4096, 2), calibration)
    assert errors.max() < 3 * ordinary.max()


def test_far_vectors_in_the_sample_take_their_bits_from_the_others():
    values = memory(4096, 4, heavy=0.02)
    calibration = fitted("fisher3", sample=values)
    _, payloads, _ = through("fisher3", values, calibration)
    assert sum(map(far_in, payloads)) > 20
    # Beside the numbers: a header of 24 bytes, a reference of 4, and a scale of 2 bytes for each vector.
    bits = (sum(map(len, payloads)) - len(payloads) * (28 + 16)) * 8 / values.size
    assert bits == pytest.approx(3, abs=16 / DIM / 2)


def test_the_metric_is_that_of_the_sensitivity():
    calibration = fitted("fisher3")
    identity = np.eye(DIM)
    np.testing.assert_allclose(calibration.analysis @ calibration.transform, identity, atol=1e-4)
    assert calibration.energies.sum() == pytest.approx(DIM, rel=1e-4)
    numbers = calibration.normalise(SAMPLE) @ calibration.analysis
    np.testing.assert_allclose(np.square(numbers).mean(axis=0), 1, rtol=1e-2)
    lost = memory(50, 5) - memory(50, 6)
    expected = np.einsum("ij,jk,ik->i", lost, SENSITIVITY, lost)
    found = errors_in_metric(lost, np.zeros_like(lost), calibration)
    # They differ by a scale, and by the ridge of a hundredth of the mean sensitivity.
    assert np.std(found / expected) / np.mean(found / expected) < 0.05


@pytest.mark.parametrize(
    ("sensitivity", "message"),
    [(np.eye(DIM + 1), r"has shape \(48, 48\), not \(49, 49\)"), (np.full((DIM, DIM), np.nan), "not finite")],
)
def test_a_sensitivity_that_is_none(sensitivity, message):
    with pytest.raises(ValueError, match=message):
        fitted("fisher2", sensitivity)


def test_documents_with_far_vectors_are_the_same_alone_and_folded():
    values, calibration, codec = memory(64, 3, heavy=0.3), fitted("fisher2"), codec_by_name("fisher2")
    decoded, payloads, _ = through("fisher2", values, calibration)
    assert len({far_in(payload) for payload in payloads}) > 2
    alone = [decode_batch([payload], None, lambda _: calibration)[0] for payload in payloads]
    np.testing.assert_allclose(np.concatenate(alone), decoded, rtol=1e-5, atol=1e-4)
    bodies = codec.encode(values, [8] * 8, calibration)
    latents = codec.latents(Bodies.of([memoryview(body) for body in bodies]), np.full(8, 8), DIM, calibration)
    matrix, offset = codec.inverse(calibration)
    np.testing.assert_allclose(latents @ matrix + offset, decoded, rtol=1e-4, atol=1e-4 * SCALES.max())


def test_a_body_of_any_other_size_is_corrupt():
    values, calibration, codec = memory(64, 3, heavy=0.3), fitted("fisher2"), codec_by_name("fisher2")
    body = next(
        each for each in codec.encode(values, [8] * 8, calibration) if (np.frombuffer(each, "<f2", 8, 4) < 0).any()
    )
    wrong = [body[:size] for size in range(len(body))] + [body + b"x"]
    # The sign of a scale says how long its row is.
    wrong += [body[: 5 + 2 * n] + bytes([body[5 + 2 * n] ^ 0x80]) + body[6 + 2 * n :] for n in range(8)]
    for each in wrong:
        with pytest.raises(CorruptStoreError, match="cannot hold 8 memory tokens of width 48"):
            codec.latents(Bodies.of([memoryview(each)]), np.array([8]), DIM, calibration)


@pytest.mark.fault(
    "Memory holds values that are not finite, or lie far from the corpus's.",
    "Its document is stored by a better codec and counted.",
)
def test_a_document_beyond_all_bounds_gets_a_better_codec():
    values = memory(24, 5)
    values[8:16] *= 1000
    _, payloads, _ = through("fisher3", values, fitted("fisher3"))
    assert [codec_by_id(payload[3]).name for payload in payloads] == ["fisher3", "bf16", "fisher3"]


@pytest.mark.parametrize("name", ["fisher4", "fisher3", "fisher2"])
def test_no_sample_still_gives_a_codec(name):
    """All shards of a small corpus may be skipped because an earlier process crashed in them."""
    codec, sample = codec_by_name(name), MemorySample(np.zeros((0, DIM), np.float32), [], [])
    calibration, prediction = fit(codec, sample, None)
    assert prediction.error_db is None
    values = memory(16, 3)
    decoded, _, _ = through(name, values, Calibration.from_bytes(calibration.to_bytes()))
    assert np.square(decoded - values).sum() < codec.bound * np.square(values).sum()
