import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pisco_index.errors import CorruptStoreError
from pisco_index.store import CODECS, codec_by_name, decode, decode_batch, encode
from pisco_index.store.payload import HEADER_BYTES, read_header

FP32 = codec_by_name("fp32")
BF16 = codec_by_name("bf16")
DIM = 6

memories = hnp.arrays(np.float32, st.tuples(st.integers(0, 5), st.just(DIM)), elements=st.floats(-9, 9, width=16)).map(
    lambda values: (values.view(np.uint32) & 0xFFFF0000).view(np.float32)
)
ids = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)


@given(ids, memories, st.sampled_from(CODECS))
def test_a_record_round_trips(doc_id, values, codec):
    decoded = decode(encode(doc_id, values, codec), doc_id)
    assert decoded.dtype == np.float32
    np.testing.assert_array_equal(decoded, values)


@given(st.lists(st.tuples(ids, memories, st.sampled_from(CODECS)), min_size=1, max_size=6))
def test_a_batch_is_ragged_and_may_mix_codecs(documents):
    names = [doc_id for doc_id, _, _ in documents]
    values, lengths = decode_batch([encode(*document) for document in documents], names)
    assert (values.dtype, lengths.dtype) == (np.float32, np.int64)
    assert lengths.tolist() == [len(memory) for _, memory, _ in documents]
    np.testing.assert_array_equal(values, np.concatenate([memory for _, memory, _ in documents]))


def test_no_records_are_an_empty_batch():
    values, lengths = decode_batch([])
    assert (values.shape, lengths.shape) == ((0, 0), (0,))


@given(st.data())
def test_any_flipped_bit_is_noticed(data):
    payload = bytearray(encode("a document", np.ones((3, DIM), np.float32), data.draw(st.sampled_from(CODECS))))
    bit = data.draw(st.integers(0, len(payload) * 8 - 1))
    payload[bit // 8] ^= 1 << bit % 8
    with pytest.raises(CorruptStoreError):
        decode(bytes(payload))


@given(st.integers(0, 60), st.binary(max_size=8))
def test_a_cut_or_extended_record_is_noticed(end, tail):
    payload = encode("a document", np.ones((2, DIM), np.float32), BF16)
    damaged = payload[:end] + tail
    if damaged != payload:
        with pytest.raises(CorruptStoreError):
            decode(damaged)


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
