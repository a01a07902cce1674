"""How far a store's build is."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ...store import Store, StoreInfo, describe, done_shards, plan_in_force
from ..planning.plan import Changes, Plan

PLAN_ASSET = "plan.json"
"""Where a store keeps the plan that it was created with."""

CONFIG_ASSET = "config.json"


@dataclass(frozen=True)
class BuildStatus:
    """A store in numbers, beside what its plan says.

    Attributes:
        store: the store in numbers.
        records: lines, rows or pages of the plan in force.
        shards_planned: of that plan.
        shards_missing: not done yet.
        dropped: records left out on purpose, by reason.
        rejected: records left out because they cannot be used, by reason.
        changes: what the plan changes where it is an update's.
    """

    store: StoreInfo
    records: int
    shards_planned: int
    shards_missing: tuple[int, ...]
    dropped: dict[str, int]
    rejected: dict[str, int]
    changes: Changes | None = None

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
            "rejected": self.rejected,
            "changes": asdict(self.changes) if self.changes else None,
        }


def build_status(uri: str | Path) -> BuildStatus:
    """Describe a store, finished or not, also while a build is writing it.

    Raises:
        StoreError: if there is no store, or it cannot be read.
    """
    store = Store.open(uri)
    plan = current_plan(store)
    return BuildStatus(
        store=describe(store),
        records=plan.records,
        shards_planned=len(plan.shards),
        shards_missing=tuple(shard.number for shard in plan.missing(done_shards(store))),
        dropped=dict(plan.dropped),
        rejected=dict(plan.rejected),
        changes=plan.changes,
    )


def current_plan(store: Store) -> Plan:
    """The plan that a store is built to.

    Raises:
        StoreError: the store has none, or it cannot be read.
    """
    return Plan.from_json(store.asset(plan_in_force(store.table) or PLAN_ASSET))
