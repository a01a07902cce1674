"""How far a store's build is."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..store import Store, StoreInfo, describe, done_shards
from .plan import Plan

PLAN_ASSET = "plan.json"


@dataclass(frozen=True)
class BuildStatus:
    """A store in numbers, beside what its plan says.

    Attributes:
        store: the store in numbers.
        records: planned lines, rows or pages.
        shards_planned: of the plan.
        shards_missing: not done yet.
        dropped: records left out on purpose, by reason.
    """

    store: StoreInfo
    records: int
    shards_planned: int
    shards_missing: tuple[int, ...]
    dropped: dict[str, int]

    @property
    def is_complete(self) -> bool:
        """Whether every shard is done."""
        return not self.shards_missing

    def to_dict(self) -> dict[str, Any]:
        """All of it as values that JSON knows."""
        return self.store.to_dict() | {
            "records": self.records,
            "shards_planned": self.shards_planned,
            "shards_missing": list(self.shards_missing),
            "dropped": self.dropped,
        }


def build_status(uri: str | Path) -> BuildStatus:
    """Describe a store, finished or not, also while a build is writing it.

    Raises:
        StoreError: if there is no store, or it cannot be read.
    """
    store = Store.open(uri)
    plan = Plan.from_json(store.asset(PLAN_ASSET))
    done = done_shards(store)
    return BuildStatus(
        store=describe(store),
        records=plan.records,
        shards_planned=len(plan.shards),
        shards_missing=tuple(shard.number for shard in plan.shards if shard.number not in done),
        dropped=dict(plan.dropped),
    )
