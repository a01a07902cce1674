"""Every codec returns the memory that it was given, within the loss it allows, at every width and for any values."""

from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pisco_index.configs.names import CodecName
from pisco_index.errors import CorruptStoreError, StoreError
from pisco_index.store import CODECS, codec_by_id, codec_by_name, decode_batch, encode_batch, is_calibrated
from pisco_index.store.codecs.bits import pack, packed_bytes, unpack
from pisco_index.store.codecs.calibration import fit_channels
from pisco_index.store.codecs.codec import Bodies
from pisco_index.store.codecs.prediction import normalised_error_db
from pisco_index.store.codecs.rotation import rotate, rotate_back

BF16 = codec_by_name("bf16")
CALIBRATED = [codec for codec in CODECS if is_calibrated(codec)]
EXACT = [codec_by_name(name) for name in ("bf16", "bf16z")]
# Largest normalised error of normally distributed memory with independent channels, which is the worst case.
GREATEST_DB = {"int8": -41.5, "int4": -20.0, "klt3": -14.0, "klt2": -9.0}
GREATEST_DB |= {"fisher4": -19.8, "fisher3": -14.0, "fisher2": -9.0}
WIDTHS = [1, 3, 96, 100, 576, 896, 1024]


def name_of(codec):
    return codec.name


def memory(vectors, dim, seed=0):
    """Normal numbers; each channel has its own mean and deviation."""
    generator = np.random.default_rng(seed)
    shifts, scales = generator.normal(0, 3, dim), np.exp(generator.normal(0, 1, dim))
    return (generator.standard_normal((vectors, dim)) * scales + shifts).astype(np.float32)


def correlated(vectors, dim, seed=0, slope=1.0):
    """Memory whose variance lies mostly in few directions, as that of trained models does."""
    generator = np.random.default_rng(seed)
    basis, _ = np.linalg.qr(generator.standard_normal((dim, dim)))
    spectrum = np.arange(1, dim + 1) ** -slope
    return (generator.standard_normal((vectors, dim)) * spectrum @ basis).astype(np.float32)


def through(codec, values, lengths=None, calibration=None):
    """Encode and decode: the memory that comes back, and the records."""
    lengths = [len(values)] if lengths is None else lengths
    calibration = codec.calibrate(values) if calibration is None else calibration
    payloads = encode_batch([""] * len(lengths), values, lengths, codec, calibration)
    return decode_batch(payloads, None, lambda _: calibration)[0], payloads


def codecs_of(payloads):
    return [codec_by_id(payload[3]).name for payload in payloads]


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
    expected = {"bf16": 1, "fp32": 2, "bf16z": 3, "int8": 4, "int4": 5, "klt3": 6, "klt2": 7}
    expected |= {"fisher4": 8, "fisher3": 9, "fisher2": 10}
    assert {c.name: c.codec_id for c in CODECS} == expected


def test_the_names_are_those_that_configurations_may_use():
    assert tuple(codec.name for codec in CODECS) == get_args(CodecName)


def test_unknown_codecs_are_named():
    with pytest.raises(
        StoreError, match=r"'jpeg'.*fp32, bf16, bf16z, int8, int4, klt3, klt2, fisher4, fisher3, fisher2"
    ):
        codec_by_name("jpeg")
    with pytest.raises(CorruptStoreError, match="codec 200"):
        codec_by_id(200)


def test_every_fallback_leads_to_a_codec_that_takes_anything():
    for codec in CODECS:
        while codec.fallback is not None:
            better = codec_by_name(codec.fallback)
            assert better.fidelity > codec.fidelity
            codec = better
        assert not is_calibrated(codec)


# Exact codecs


@given(matrices)
def test_fp32_is_exact(values):
    decoded, _ = through(codec_by_name("fp32"), values)
    np.testing.assert_array_equal(decoded.view("u4"), values.view("u4"))


@pytest.mark.parametrize("codec", CODECS, ids=name_of)
def test_bits_of_bfloat16_give_the_records_of_their_numbers(codec):
    # The last document is refused by the calibrated codecs.
    values = np.concatenate([to_bf16(correlated(40, 24)), np.full((3, 24), 1e30, np.float32)])
    calibration = codec.calibrate(correlated(2000, 24, seed=1))
    arguments = [20, 0, 20, 3], codec, calibration
    bits = (to_bf16(values).view(np.uint32) >> 16).astype(np.uint16)
    assert encode_batch(list("abcd"), bits, *arguments) == encode_batch(list("abcd"), to_bf16(values), *arguments)


@pytest.mark.parametrize("codec", EXACT, ids=name_of)
@given(values=matrices.map(to_bf16))
def test_values_that_bfloat16_represents_are_exact(codec, values):
    decoded, _ = through(codec, values)
    assert decoded.dtype == np.float32
    np.testing.assert_array_equal(decoded, values)
    np.testing.assert_array_equal(np.signbit(decoded), np.signbit(values))


@given(hnp.arrays(np.float32, (3, 4), elements=st.floats(-(2.0**99), 2.0**99, width=32)))
def test_bf16_rounds_to_a_nearest_value(values):
    error = np.abs(through(BF16, values)[0].astype(np.float64) - values)
    below = to_bf16(values)
    above = (below.view(np.uint32) + 0x10000).view(np.float32)
    nearest = np.minimum(np.abs(below.astype(np.float64) - values), np.abs(above.astype(np.float64) - values))
    np.testing.assert_array_equal(error, nearest)


def test_bf16_breaks_ties_to_even():
    tied = np.array([[0x3F808000, 0x3F818000]], dtype=np.uint32).view(np.float32)
    assert through(BF16, tied)[0].view(np.uint32).tolist() == [[0x3F800000, 0x3F820000]]


@pytest.mark.parametrize("codec", EXACT, ids=name_of)
def test_every_nan_and_infinity_is_kept(codec):
    bits = [0x7F800001, 0x7FFFFFFF, 0xFFFFFFFF, 0xFF800001, 0x7F800000, 0xFF800000]
    values = np.array([bits], dtype=np.uint32).view(np.float32)
    decoded, _ = through(codec, values)
    np.testing.assert_array_equal(np.isnan(decoded), np.isnan(values))
    np.testing.assert_array_equal(decoded[:, 4:], values[:, 4:])


def test_bf16z_is_a_third_smaller_than_bf16_and_equals_it():
    values = memory(256, 512)
    plain, large = through(BF16, values, [8] * 32)
    packed, small = through(codec_by_name("bf16z"), values, [8] * 32)
    np.testing.assert_array_equal(plain, packed)
    assert sum(map(len, small)) < 0.75 * sum(map(len, large))


# Calibrated codecs


# The factors of a width matter only to the rotation of int4, and fitting a transform to a large width takes long.
@pytest.mark.parametrize(
    ("codec", "dim"),
    [
        (codec, dim)
        for codec in CALIBRATED
        for dim in WIDTHS
        if not (codec.name[:2] in ("kl", "fi") and dim in (576, 896))
    ],
    ids=lambda value: getattr(value, "name", str(value)),
)
def test_the_error_is_within_the_codecs_own(codec, dim):
    values = memory(max(256, dim), dim)
    decoded, payloads = through(codec, values, [len(values) // 8] * 8 + [len(values) % 8])
    assert set(codecs_of(payloads)) == {codec.name}
    # With few channels the rotated numbers are not normally distributed, and lose a little more.
    slack = 1.5 if dim < 96 else 0.0
    assert normalised_error_db(values, decoded) < GREATEST_DB[codec.name] + slack


@pytest.mark.parametrize("codec", CALIBRATED, ids=name_of)
def test_bits_are_what_the_name_says(codec):
    values = memory(2048, 96)
    _, (payload,) = through(codec, values)
    bits = int(codec.name[-1])
    # Beside them a header of 24 bytes, a reference of 4 and a scale of 2 bytes a vector.
    expected = 24 + 4 + 2048 * (2 + 96 * bits // 8)
    # A few vectors that are far from the others take 8 bits per number.
    assert expected <= len(payload) <= (1.001 if codec.name.startswith("fisher") else 1) * expected


@pytest.mark.parametrize("codec", CALIBRATED, ids=name_of)
def test_outlier_channels_change_little(codec):
    values = correlated(2048, 128)
    wild = values.copy()
    wild[:, [3, 40, 77, 100]] *= np.array([10, 30, 60, 100], np.float32)
    errors = [normalised_error_db(each, through(codec, each)[0]) for each in (values, wild)]
    assert abs(errors[0] - errors[1]) < 0.3


def test_klt2_is_a_third_of_a_bit_better_than_plain_rounding():
    values = correlated(4096, 128)
    error = normalised_error_db(values, through(codec_by_name("klt2"), values)[0])
    # Lloyd-Max at 2 bits has -9.3 dB and gains 5.3 dB from the third: 0.3 bits are 1.6 dB.
    assert error < -9.3 - 1.6


@pytest.mark.parametrize("codec", CALIBRATED, ids=name_of)
def test_latents_and_the_inverse_make_the_memory(codec):
    values = correlated(300, 96)
    calibration = codec.calibrate(values)
    (body,) = codec.encode(values, [300], calibration)
    latents = codec.latents(Bodies.of([memoryview(body)]), np.array([300]), 96, calibration)
    matrix, offset = codec.inverse(calibration)
    expected = codec.restore(latents.copy(), calibration)
    np.testing.assert_allclose(latents @ matrix + offset, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("codec", CALIBRATED, ids=name_of)
def test_a_handful_of_vectors_is_enough_to_fit_to(codec):
    for vectors in (1, 2, 7):
        values = memory(vectors, 40)
        decoded, _ = through(codec, values)
        np.testing.assert_allclose(decoded, values, rtol=0, atol=3 * np.abs(values).max() * 10**-0.3)
        assert np.isfinite(decoded).all()


@pytest.mark.parametrize("codec", CALIBRATED, ids=name_of)
def test_constant_channels_come_back(codec):
    values = memory(600, 64)
    values[:, 5] = 7.25
    values[:, 9] = 0
    decoded, payloads = through(codec, values)
    assert codecs_of(payloads) == [codec.name]
    np.testing.assert_allclose(decoded[:, 5], 7.25, atol=0.05)
    np.testing.assert_allclose(decoded[:, 9], 0, atol=0.05)


@pytest.mark.fault(
    "Memory holds values that are not finite, or lie far from the corpus's.",
    "Its document is stored by a better codec and counted.",
)
@pytest.mark.parametrize("codec", CALIBRATED, ids=name_of)
def test_a_document_with_what_is_no_number_is_kept_exactly(codec):
    values = memory(64, 32)
    calibration = codec.calibrate(values)
    values[[9, 17, 33, 57], 3] = [np.nan, np.inf, -np.inf, 3e38]
    decoded, payloads = through(codec, values, [8] * 8, calibration)
    own = codec.name
    assert codecs_of(payloads) == [own, "bf16", "bf16", own, "bf16", own, own, "bf16"]
    for begin in (8, 16, 32, 56):
        part = slice(begin, begin + 8)
        np.testing.assert_array_equal(decoded[part], through(BF16, values[part])[0])


@pytest.mark.fault(
    "Memory holds values that are not finite, or lie far from the corpus's.",
    "Its document is stored by a better codec and counted.",
)
@pytest.mark.parametrize(("name", "taken_by"), [("int8", "bf16"), ("int4", "int8"), ("klt3", "int8"), ("klt2", "int8")])
def test_a_document_that_would_lose_too_much_gets_a_better_codec(name, taken_by):
    codec = codec_by_name(name)
    values = correlated(2000, 64, slope=1.5)
    calibration = codec.calibrate(values)
    stranger = calibration.std * 3 * np.random.default_rng(1).standard_normal((8, 64)).astype(np.float32)
    if name == "int8":
        stranger[2, 7] += 100 * calibration.std[7]
    both = np.concatenate([values[:8], stranger])
    decoded, payloads = through(codec, both, [8, 8], calibration)
    assert codecs_of(payloads) == [name, taken_by]
    error = np.mean(np.square((decoded[8:] - stranger) / fit_channels(values).std))
    assert error < 1.1e-3


@pytest.mark.parametrize("codec", CODECS, ids=name_of)
@settings(max_examples=25)
@given(lengths=st.lists(st.integers(0, 4), min_size=1, max_size=6))
def test_a_batch_equals_its_documents_one_by_one(codec, lengths):
    values = to_bf16(memory(200, 24))
    calibration = codec.calibrate(values)
    values = values[: sum(lengths)]
    together, payloads = through(codec, values, lengths, calibration)
    alone = [decode_batch([payload], None, lambda _: calibration)[0] for payload in payloads]
    np.testing.assert_allclose(together, np.concatenate(alone), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("codec", CODECS, ids=name_of)
def test_a_body_that_does_not_fit_is_corrupt(codec):
    values = memory(4, 8)
    calibration = codec.calibrate(values)
    (body,) = codec.encode(values[:2], [2], calibration)
    with pytest.raises(CorruptStoreError, match=r"3 memory tokens of width 8|exponents"):
        codec.latents(Bodies.of([memoryview(body)]), np.array([3]), 8, calibration)


def test_exponents_that_are_damaged_are_corrupt():
    codec = codec_by_name("bf16z")
    (body,) = codec.encode(memory(2, 8), [2], None)
    for damaged, message in ((body[:16] + b"junk", "cannot be decompressed"), (body[:-6], "cannot be decompressed")):
        with pytest.raises(CorruptStoreError, match=message):
            codec.latents(Bodies.of([memoryview(damaged)]), np.array([2]), 8, None)
    (longer,) = codec.encode(memory(3, 8), [3], None)
    with pytest.raises(CorruptStoreError, match="does not hold the 16"):
        codec.latents(Bodies.of([memoryview(body[:16] + longer[24:])]), np.array([2]), 8, None)


# Parts


@given(st.integers(1, 8), st.integers(0, 4), st.integers(0, 40), st.integers(0, 2**32 - 1))
def test_packed_numbers_come_out_again(bits, rows, count, seed):
    numbers = np.random.default_rng(seed).integers(0, 2**bits, (rows, count), dtype=np.uint8)
    packed = pack(numbers, bits)
    assert packed.shape == (rows, packed_bytes(count, bits))
    np.testing.assert_array_equal(unpack(packed, bits, count), numbers)


def test_the_bytes_of_packed_numbers_are_what_the_format_says():
    assert pack(np.array([[1, 2, 15, 0]], np.uint8), 4).tolist() == [[0x21, 0x0F]]
    # 3 bits: the plane of lowest bits, then that of the upper two.
    assert pack(np.array([[5, 6, 1, 0]], np.uint8), 3).tolist() == [[0b0101, 0b00001110]]


@pytest.mark.parametrize("dim", [1, 2, 3, 96, 576, 896, 1000, 1024])
def test_the_rotation_is_one_and_spreads_every_channel(dim):
    signs = np.where(np.arange(dim) % 3, 1, -1).astype(np.float32)
    identity = np.eye(dim, dtype=np.float32)
    rotated = rotate(identity, signs)
    np.testing.assert_allclose(rotated @ rotated.T, identity, atol=1e-5)
    np.testing.assert_allclose(rotate_back(rotated, signs), identity, atol=1e-5)
    # No channel keeps more than a small share of its energy in one place, unless there are few places.
    assert np.abs(rotated).max() <= np.sqrt(2 / dim) * 1.5 or dim <= 3
