"""Fit a codec to a corpus before a build begins, from a sample that the workers compress."""

from collections.abc import Iterator

import numpy as np

from ..errors import InputError
from ..store import Calibration, Codec, MemorySample, Prediction, fit
from .planning.plan import Plan, Shard
from .pools.pool import Pool

# Number of shards that a sample is spread over. More would cost reading time; fewer might all be of one kind.
SAMPLED_SHARDS = 16


def calibrate(
    codec: Codec, pool: Pool, plan: Plan, dim: int, unread: str = ""
) -> tuple[Calibration | None, Prediction]:
    """Let a pool compress a sample that is spread evenly over a plan, fit a codec to it, and measure what it loses.

    The same plan gives the same sample. A corpus with fewer vectors than the codec wants gives all of them. A shard is
    skipped if its sample fails, or if an earlier process crashed in it: the build finds the cause when it does the
    shard.

    Args:
        codec: codec to fit.
        pool: pool that does nothing else meanwhile.
        plan: plan of the build.
        dim: width of the vectors.
        unread: reason for which the checkpoint's decoder does not read the sample; empty if it does.

    Raises:
        CorpusError: the corpus cannot be read as it was planned.
        Exception: error of the last shard, if no shard gave a sample, or of the decoder that the codec is fitted to.
    """
    wanted = codec.sample_vectors(dim)
    each = -(-wanted // min(SAMPLED_SHARDS, len(plan.shards)))
    parts, lengths, texts, found = [np.zeros((0, dim), np.float32)], list[int](), list[str](), 0
    failure: Exception | None = None
    for shard in _spread(plan):
        if found >= wanted:
            break
        if pool.crashes.get(shard.number):
            continue
        try:
            part = pool.sample(shard, min(each, wanted - found))
        except InputError:
            raise
        except Exception as error:  # noqa: BLE001  a document may make a worker fail with any error
            failure = error
            continue
        parts.append(part.values)
        lengths += part.lengths
        texts += part.texts
        found += len(part.values)
    if not found and failure is not None:
        raise failure
    sample = MemorySample(np.concatenate(parts), lengths, texts)
    return fit(codec, sample, None if unread else pool, missing=unread)


def _spread(plan: Plan) -> Iterator[Shard]:
    """Yield shards at even distances, then the remaining ones."""
    step = max(len(plan.shards) // SAMPLED_SHARDS, 1)
    yield from plan.shards[::step]
    yield from (shard for place, shard in enumerate(plan.shards) if place % step)
