from dataclasses import dataclass
from typing import Any

import pytest

from pisco_index.corpus import open_corpus
from pisco_index.pipeline.job import prepare
from pisco_index.pipeline.planning.planner import plan_corpus

LONG_S = 600.0


@dataclass
class Work:
    """Everything a worker requires, and the shards of a plan."""

    spec: Any
    shards: Any


@pytest.fixture
def work(checkpoint, make_corpus, small, tmp_path):
    """Work for a pool: 24 documents in shards of eight."""
    job = prepare([make_corpus(24)], checkpoint, tmp_path / "store", small())
    plan = plan_corpus(open_corpus(job.paths, job.config.corpus), shard_documents=8)
    return Work(job.worker_spec(plan), plan.shards)
