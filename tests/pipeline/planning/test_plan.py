"""A plan survives being stored."""

import bz2
import json

import pytest

from pisco_index.errors import CorruptStoreError
from pisco_index.pipeline.planning.plan import Plan, Selection, Shard, Share

from .conftest import documents, ids_by_shard, plan, write


def test_a_plan_survives_json(tmp_path):
    path = tmp_path / "a.jsonl.bz2"
    path.write_bytes(bz2.compress(write(tmp_path / "raw.jsonl", documents(9)).read_bytes()))
    found = plan(path)
    again = Plan.from_json(found.to_json())
    assert again == found
    assert ids_by_shard(again) == ids_by_shard(found)


@pytest.mark.parametrize("selection", [None, Selection.of([True, False, True])])
@pytest.mark.parametrize("share", [None, Share(1, 3)])
def test_a_shard_survives_json(selection, share):
    found = Plan((), (), (Shard(4, (), 1, 20, selection, share),), {})
    assert Plan.from_json(found.to_json()) == found


@pytest.mark.parametrize("entries", [[None, None, 1, 1], [None, None, 1], [None, None, 1, 2, 3]])
def test_a_damaged_share_is_refused(entries):
    plan = json.loads(Plan((), (), (Shard(4, (), 1, 20),), {}).to_json())
    plan["shards"][0] += entries
    with pytest.raises(CorruptStoreError, match="part 1"):
        Plan.from_json(json.dumps(plan).encode())
