"""The totals of a store and of its plan."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ...corpus import taken_for
from ...store import Store, StoreInfo, describe, done_shards
from ..planning.plan import Changes
from ..planning.stored import current_plan


@dataclass(frozen=True)
class BuildStatus:
    """Totals of a store and of its plan.

    Attributes:
        store: totals of the store.
        records: number of records (lines, rows or pages) in the plan in force.
        shards_planned: number of shards of that plan.
        shards_missing: numbers of the shards that are not done yet.
        dropped: number of records left out on purpose, by reason.
        rejected: number of records that cannot be used, by reason.
        changes: changes that the plan makes, if it is an update's.
        corpus: line for each file of the corpus, or several alike, that says what it was taken for.
    """

    store: StoreInfo
    records: int
    shards_planned: int
    shards_missing: tuple[int, ...]
    dropped: dict[str, int]
    rejected: dict[str, int]
    changes: Changes | None = None
    corpus: tuple[str, ...] = ()

    @property
    def is_complete(self) -> bool:
        """True if every shard is done."""
        return not self.shards_missing

    def to_dict(self) -> dict[str, Any]:
        """Return the totals as JSON-able values."""
        return self.store.to_dict() | {
            "records": self.records,
            "shards_planned": self.shards_planned,
            "shards_missing": list(self.shards_missing),
            "dropped": self.dropped,
            "rejected": self.rejected,
            "changes": asdict(self.changes) if self.changes else None,
            "corpus": list(self.corpus),
        }


def build_status(uri: str | Path) -> BuildStatus:
    """Count what a store holds, finished or not, also while a build is writing it.

    Raises:
        StoreError: there is no store, or it cannot be read.
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
        corpus=tuple(taken_for(plan.sources)),
    )
