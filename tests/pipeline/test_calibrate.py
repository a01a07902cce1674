"""The sample that a codec is fitted to: shards that fail or crashed are skipped."""

import numpy as np
import pytest

from pisco_index.errors import CorpusError
from pisco_index.pipeline.calibrate import calibrate
from pisco_index.pipeline.planning.plan import Plan, Shard
from pisco_index.pipeline.pools.fake import FakePool
from pisco_index.store import codec_by_name

CODEC = codec_by_name("int8")
PLAN = Plan((), (), tuple(Shard(number, (), 8, 80) for number in range(4)), {})


def sampled(pool):
    calibration, prediction = calibrate(CODEC, pool, PLAN, 4)
    assert calibration is not None
    assert prediction.codec == "int8"
    return [number for _, number, _ in pool.calls]


def test_all_shards_give_a_part():
    pool = FakePool(None)
    assert sampled(pool) == [0, 1, 2, 3]
    assert sum(vectors for *_, vectors in pool.calls) == CODEC.sample_vectors(4)


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
