"""Fitting a codec to a corpus before a build begins: from a sample that is compressed for it."""

from collections.abc import Iterator

import numpy as np

from ..errors import InputError
from ..store import Calibration, Codec, Prediction, predict
from .planning.plan import Plan, Shard
from .pools.crashes import CrashLog
from .pools.pool import Pool

# Shards that a sample is spread over, if they have enough.
SAMPLED_SHARDS = 16


def calibrate(
    codec: Codec, pool: Pool, plan: Plan, dim: int, crashes: CrashLog | None = None
) -> tuple[Calibration | None, Prediction]:
    """Let a pool compress a sample that is spread evenly over a plan, and fit a codec to it.

    The same plan gives the same sample. A corpus with fewer vectors than the codec asks for gives all it has. A shard
    whose sample fails, or in which this process died before, is passed over: the cause is found when it is done.

    Raises:
        CorpusError: if the corpus cannot be read as it was planned.
        Exception: if no shard gives a sample; of the last.
    """
    wanted = codec.sample_vectors(dim)
    each = -(-wanted // min(SAMPLED_SHARDS, len(plan.shards)))
    parts, lengths, found = [np.zeros((0, dim), np.float32)], list[int](), 0
    failure: Exception | None = None
    for shard in _spread(plan):
        if found >= wanted:
            break
        if crashes is not None:
            if crashes.counts[shard.number]:
                continue
            crashes.holds({shard.number})
        try:
            values, counts = pool.sample(shard, min(each, wanted - found))
        except InputError:
            raise
        except Exception as error:  # noqa: BLE001  whatever a document makes a worker fail of
            failure = error
            continue
        parts.append(values)
        lengths += counts
        found += len(values)
    if not found and failure is not None:
        raise failure
    sample = np.concatenate(parts)
    calibration = codec.calibrate(sample)
    return calibration, predict(codec, sample, lengths, calibration)


def _spread(plan: Plan) -> Iterator[Shard]:
    """Shards at even distances, then all others."""
    step = max(len(plan.shards) // SAMPLED_SHARDS, 1)
    yield from plan.shards[::step]
    yield from (shard for place, shard in enumerate(plan.shards) if place % step)
