import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pisco_index.errors import CorruptStoreError, StoreError
from pisco_index.store import CODECS, codec_by_name, decode, decode_batch, encode, is_calibrated
from pisco_index.store.codecs.payload import latents_of
from pisco_index.store.codecs.record import HEADER_BYTES, Records, read_header

FP32 = codec_by_name("fp32")
BF16 = codec_by_name("bf16")
DIM = 6

memories = hnp.arrays(np.float32, st.tuples(st.integers(0, 5), st.just(DIM)), elements=st.floats(-9, 9, width=16)).map(
    lambda values: (values.view(np.uint32) & 0xFFFF0000).view(np.float32)
)
# A calibration for each codec, and the same by their references.
SAMPLE = np.random.default_rng(0).standard_normal((300, DIM)).astype(np.float32)
CALIBRATIONS = {codec.name: codec.calibrate(SAMPLE) for codec in CODECS}
BY_REFERENCE = {each.reference: each for each in CALIBRATIONS.values() if each is not None}
# Normalised memory of the documents above is within 9 or so, and klt2 loses much of one channel in six.
TOLERANCE = {"int8": 0.06, "int4": 2.0, "klt3": 4.0, "klt2": 7.0, "fisher4": 2.0, "fisher3": 4.0, "fisher2": 7.0}
ids = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)


def made(doc_id, values, codec):
    return encode(doc_id, values, codec, CALIBRATIONS[codec.name])


def assert_close(decoded, values, codec):
    np.testing.assert_allclose(decoded, values, rtol=0, atol=TOLERANCE.get(codec.name, 0))


@given(ids, memories, st.sampled_from(CODECS))
def test_a_record_round_trips(doc_id, values, codec):
    decoded = decode(made(doc_id, values, codec), doc_id, BY_REFERENCE.__getitem__)
    assert decoded.dtype == np.float32
    assert_close(decoded, values, codec)


@given(st.lists(st.tuples(ids, memories, st.sampled_from(CODECS)), min_size=1, max_size=6))
def test_a_batch_is_ragged_and_may_mix_codecs(documents):
    names = [doc_id for doc_id, _, _ in documents]
    values, lengths = decode_batch([made(*document) for document in documents], names, BY_REFERENCE.__getitem__)
    assert (values.dtype, lengths.dtype) == (np.float32, np.int64)
    assert lengths.tolist() == [len(memory) for _, memory, _ in documents]
    ends = np.cumsum(lengths)
    for (_, memory, codec), end in zip(documents, ends, strict=True):
        assert_close(values[end - len(memory) : end], memory, codec)


def test_latents_are_given_for_records_of_one_codec_and_calibration():
    values = SAMPLE[:4]
    int8, other = (codec_by_name(name) for name in ("int8", "bf16"))
    alike = [made("a", values, int8), made("b", values, int8)]
    latents = latents_of(Records.checked(alike, ["a", "b"]), BY_REFERENCE.__getitem__)
    assert (latents.codec, latents.calibration) == (int8, CALIBRATIONS["int8"])
    restored = int8.restore(latents.values.copy(), latents.calibration)
    np.testing.assert_array_equal(restored, decode_batch(alike, None, BY_REFERENCE.__getitem__)[0])
    elsewhere = int8.calibrate(SAMPLE * 2)
    known = {**BY_REFERENCE, elsewhere.reference: elsewhere}
    for stranger in (made("b", values, other), encode("b", values, int8, elsewhere)):
        assert latents_of(Records.checked([alike[0], stranger], None), known.__getitem__) is None
        np.testing.assert_allclose(
            decode_batch([alike[0], stranger], None, known.__getitem__)[0][4:], values, atol=0.05, rtol=0
        )


@pytest.mark.parametrize("codec", [codec for codec in CODECS if is_calibrated(codec)], ids=lambda codec: codec.name)
def test_a_record_needs_its_own_calibration(codec):
    payload = made("a", SAMPLE[:2], codec)
    reference = f"{CALIBRATIONS[codec.name].reference:08x}"
    with pytest.raises(StoreError, match=f"codec {codec.name} needs calibration {reference}, and none is given"):
        decode(payload, "a")
    wider = codec.calibrate(np.ones((4, DIM + 2), np.float32))
    with pytest.raises(CorruptStoreError, match=f"width {DIM} refers to calibration {reference}, whose width is 8"):
        decode(payload, "a", lambda _: wider)
    for calibration in (None, wider):
        with pytest.raises(ValueError, match=f"codec {codec.name} needs a calibration of width {DIM}"):
            encode("a", SAMPLE[:2], codec, calibration)


def test_no_records_are_an_empty_batch():
    values, lengths = decode_batch([])
    assert (values.shape, lengths.shape) == ((0, 0), (0,))


@pytest.mark.fault(
    "A bit of a payload flips, or a payload lies in another row.",
    "Reading it is an error.",
)
@given(st.data())
def test_any_flipped_bit_is_noticed(data):
    payload = bytearray(made("a document", np.ones((3, DIM), np.float32), data.draw(st.sampled_from(CODECS))))
    bit = data.draw(st.integers(0, len(payload) * 8 - 1))
    payload[bit // 8] ^= 1 << bit % 8
    with pytest.raises(CorruptStoreError):
        decode(bytes(payload), None, BY_REFERENCE.__getitem__)


@given(st.integers(0, 60), st.binary(max_size=8))
def test_a_cut_or_extended_record_is_noticed(end, tail):
    payload = encode("a document", np.ones((2, DIM), np.float32), BF16)
    damaged = payload[:end] + tail
    if damaged != payload:
        with pytest.raises(CorruptStoreError):
            decode(damaged)


@pytest.mark.fault(
    "A bit of a payload flips, or a payload lies in another row.",
    "Reading it is an error.",
)
def test_a_record_in_another_documents_row_is_noticed():
    payload = encode("one", np.ones((2, DIM), np.float32), BF16)
    with pytest.raises(CorruptStoreError, match=r"document 'two'.*belongs to another"):
        decode(payload, "two")


def test_records_of_different_widths_are_not_mixed():
    records = [encode("a", np.ones((1, width), np.float32), BF16) for width in (4, 8)]
    with pytest.raises(CorruptStoreError, match=r"\[4, 8\]"):
        decode_batch(records)


def test_a_book_keeps_all_of_its_memory():
    values = np.ones((70_000, 2), np.float32)
    payload = encode("book", values, BF16)
    assert read_header(payload).n_mem == 70_000
    assert decode(payload).shape == (70_000, 2)


def test_a_newer_record_is_refused_by_version():
    payload = bytearray(encode("a", np.ones((1, DIM), np.float32), BF16))
    payload[2] = 2
    with pytest.raises(CorruptStoreError, match="has version 2"):
        decode(bytes(payload))


def test_the_bytes_are_what_the_format_says():
    values = np.array([[1.0, -2.0]], dtype=np.float32)
    checked = b"pi" + struct.pack("<BBIIII", 1, 2, 1, 2, 8, 0xE9ECF71E)
    body = struct.pack("<2f", 1.0, -2.0)
    expected = checked + struct.pack("<I", zlib.crc32(checked + body)) + body
    assert encode("doc", values, FP32) == expected
    assert len(checked) + 4 == HEADER_BYTES == 24


def test_memory_must_be_a_matrix():
    with pytest.raises(ValueError, match=r"\(4,\)"):
        encode("a", np.ones(4, np.float32), BF16)
