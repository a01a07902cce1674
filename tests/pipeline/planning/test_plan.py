"""A plan survives being stored."""

import bz2

from pisco_index.pipeline.planning.plan import Plan

from .conftest import documents, ids_by_shard, plan, write


def test_a_plan_survives_json(tmp_path):
    path = tmp_path / "a.jsonl.bz2"
    path.write_bytes(bz2.compress(write(tmp_path / "raw.jsonl", documents(9)).read_bytes()))
    found = plan(path)
    again = Plan.from_json(found.to_json())
    assert again == found
    assert ids_by_shard(again) == ids_by_shard(found)
