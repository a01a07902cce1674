import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pisco_index.errors import CorruptStoreError, StoreError
from pisco_index.store import CODECS, codec_by_id, codec_by_name

BF16 = codec_by_name("bf16")


def round_trip(codec, values):
    return codec.decode_bodies([memoryview(codec.encode_body(values))], np.array([len(values)]), values.shape[1])


def to_bf16(values):
    """Cut to bfloat16, which every float32 with an empty lower half is."""
    return (values.view(np.uint32) & 0xFFFF0000).view(np.float32)


# Every bit pattern: NaN, infinities and subnormals are among them.
matrices = hnp.arrays(np.uint32, st.tuples(st.integers(0, 5), st.integers(1, 9))).map(
    lambda bits: bits.view(np.float32)
)


def test_names_and_ids_are_each_used_once_and_find_their_codec():
    assert len({c.name for c in CODECS}) == len({c.codec_id for c in CODECS}) == len(CODECS)
    for codec in CODECS:
        assert codec_by_name(codec.name) is codec_by_id(codec.codec_id) is codec


def test_the_ids_on_disk_never_change():
    assert {c.name: c.codec_id for c in CODECS} == {"bf16": 1, "fp32": 2}


@given(matrices)
def test_fp32_is_exact(values):
    np.testing.assert_array_equal(round_trip(codec_by_name("fp32"), values).view("u4"), values.view("u4"))


@given(matrices.map(to_bf16))
def test_bf16_is_exact_for_values_that_bfloat16_represents(values):
    decoded = round_trip(BF16, values)
    assert decoded.dtype == np.float32
    np.testing.assert_array_equal(decoded, values)
    np.testing.assert_array_equal(np.signbit(decoded), np.signbit(values))


@given(hnp.arrays(np.float32, (3, 4), elements=st.floats(-(2.0**99), 2.0**99, width=32)))
def test_bf16_rounds_to_a_nearest_value(values):
    error = np.abs(round_trip(BF16, values).astype(np.float64) - values)
    below = to_bf16(values)
    above = (below.view(np.uint32) + 0x10000).view(np.float32)
    nearest = np.minimum(np.abs(below.astype(np.float64) - values), np.abs(above.astype(np.float64) - values))
    np.testing.assert_array_equal(error, nearest)


def test_bf16_breaks_ties_to_even():
    tied = np.array([[0x3F808000, 0x3F818000]], dtype=np.uint32).view(np.float32)
    assert round_trip(BF16, tied).view(np.uint32).tolist() == [[0x3F800000, 0x3F820000]]


def test_bf16_keeps_every_nan_and_infinity():
    bits = [0x7F800001, 0x7FFFFFFF, 0xFFFFFFFF, 0xFF800001, 0x7F800000, 0xFF800000]
    values = np.array([bits], dtype=np.uint32).view(np.float32)
    decoded = round_trip(BF16, values)
    np.testing.assert_array_equal(np.isnan(decoded), np.isnan(values))
    np.testing.assert_array_equal(decoded[:, 4:], values[:, 4:])


@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.name)
def test_a_body_that_does_not_fit_is_corrupt(codec):
    body = codec.encode_body(np.zeros((2, 4), np.float32))
    with pytest.raises(CorruptStoreError, match="3 memory tokens of width 4"):
        codec.decode_bodies([memoryview(body)], np.array([3]), 4)


@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.name)
def test_bits_per_value_is_the_size(codec):
    assert len(codec.encode_body(np.zeros((8, 64), np.float32))) * 8 == codec.bits_per_value * 8 * 64


def test_unknown_codecs_are_named():
    with pytest.raises(StoreError, match=r"'jpeg'.*bf16, fp32"):
        codec_by_name("jpeg")
    with pytest.raises(CorruptStoreError, match="codec 200"):
        codec_by_id(200)
