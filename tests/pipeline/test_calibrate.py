"""The sample that a codec is fitted to: shards that fail or crashed are skipped."""

import numpy as np
import pytest

from pisco_index.errors import CorpusError
from pisco_index.pipeline.calibrate import calibrate
from pisco_index.pipeline.planning.plan import Plan, Shard
from pisco_index.pipeline.pools.fake import FakePool
from pisco_index.store import MemorySample, codec_by_name
from pisco_index.store.codecs.prediction import KL_DOCUMENTS

CODEC = codec_by_name("int8")
PLAN = Plan((), (), tuple(Shard(number, (), 8, 80) for number in range(4)), {})


def sampled(pool):
    calibration, prediction = calibrate(CODEC, pool, PLAN, 4)
    assert calibration is not None
    assert prediction.codec == "int8"
    return [call[1] for call in pool.calls if call[0] == "sample"]


def test_all_shards_give_a_part():
    pool = FakePool(None)
    assert sampled(pool) == [0, 1, 2, 3]
    assert sum(vectors for name, *_, vectors in pool.calls if name == "sample") == CODEC.sample_vectors(4)


def test_shards_that_fail_or_crashed_are_skipped():
    assert sampled(FakePool(None, crashes={0: 1}, poison={(2, 0): RuntimeError("no luck")})) == [1, 2, 3]


def test_an_unreadable_corpus_ends_it():
    with pytest.raises(CorpusError, match="line 3"):
        sampled(FakePool(None, poison={(1, 0): CorpusError("line 3")}))


def test_the_last_error_is_raised_if_no_shard_gives_a_part():
    poison = {(number, 0): RuntimeError(f"shard {number}") for number in range(4)}
    with pytest.raises(RuntimeError, match="shard 3"):
        sampled(FakePool(None, poison=poison))


def test_without_a_sample_nothing_is_predicted():
    calibration, prediction = calibrate(CODEC, FakePool(None, crashes=dict.fromkeys(range(4), 1)), PLAN, 4)
    assert calibration is not None
    assert np.isfinite(prediction.bits_per_value)
    assert prediction.kl is None


def test_the_decoder_reads_documents_of_the_sample():
    pool = FakePool(None)
    _, prediction = calibrate(CODEC, pool, PLAN, 4)
    # A codec that is not fitted to the decoder asks for no sensitivity.
    assert pool.calls[-1] == ("divergence", KL_DOCUMENTS)
    assert (prediction.kl_documents, prediction.kl_worst) == (KL_DOCUMENTS, 2 * prediction.kl)
    assert prediction.kl > 0
    assert prediction.fitted_to_decoder is None


def test_a_codec_is_fitted_to_the_sensitivity():
    pool = FakePool(None)
    calibration, prediction = calibrate(codec_by_name("fisher4"), pool, PLAN, 4)
    assert [call[0] for call in pool.calls[-2:]] == ["sensitivity", "divergence"]
    assert calibration.is_sensitive
    assert prediction.fitted_to_decoder


def test_a_decoder_that_is_not_read_is_explained():
    pool = FakePool(None)
    calibration, prediction = calibrate(codec_by_name("fisher4"), pool, PLAN, 4, "it is away")
    assert {call[0] for call in pool.calls} == {"sample"}
    assert (prediction.kl, prediction.kl_missing, prediction.fitted_to_decoder) == (None, "it is away", False)
    assert not calibration.is_sensitive


def test_a_decoder_that_fails_leaves_the_divergence_out():
    _, prediction = calibrate(CODEC, FakePool(None, unreadable=RuntimeError("no room")), PLAN, 4)
    assert (prediction.kl, prediction.kl_missing) == (None, "RuntimeError: no room")


def test_a_sample_is_spread_evenly():
    values = np.arange(12, dtype=np.float32).reshape(6, 2)
    sample = MemorySample(values, [1, 2, 0, 3], ["a", "b", "c", "d"])
    assert sample.spread(4) is sample
    found = sample.spread(2)
    assert (found.lengths, found.texts) == ([1, 3], ["a", "d"])
    assert found.values.tolist() == values[[0, 3, 4, 5]].tolist()
