"""The plan and the configuration that a store keeps."""

from ...configs import CompressionConfig
from ...store import Store, StoreMeta, plan_in_force
from .plan import Plan

PLAN_ASSET = "plan.json"
"""Name of the asset that holds the plan that a store was created with."""

CONFIG_ASSET = "config.json"
"""Name of the asset that holds the configuration that a store was created with."""


def current_plan(store: Store) -> Plan:
    """Return the plan in force: that of the latest update, or the one that the store was created with.

    Raises:
        StoreError: the store has no plan, or it cannot be read.
    """
    return Plan.from_json(store.asset(plan_in_force(store.table) or PLAN_ASSET))


def keeps_input_text(meta: StoreMeta, compression: CompressionConfig) -> bool:
    """Return True if a store keeps enough to put together the text that was compressed."""
    kept = meta.optional_columns
    return "text" in kept and ("title" in kept or "{title}" not in compression.template)
