"""The plan and the configuration that a store keeps."""

from typing import Any

from pydantic import ValidationError

from ...configs import BuildConfig, CompressionConfig, Config
from ...errors import CorruptStoreError
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


def kept_config(store: Store) -> BuildConfig | None:
    """Return the configuration that a store is built with: corpus settings are those of the latest update.

    Returns:
        None for a store that was made without keeping its configuration.

    Raises:
        StoreError: the configuration cannot be read.
    """
    if CONFIG_ASSET not in store.asset_names():
        return None
    try:
        config = BuildConfig.model_validate_json(store.asset(CONFIG_ASSET))
        settings = current_plan(store).settings
        corpus = config.corpus if settings is None else type(config.corpus).model_validate(settings)
    except ValidationError as error:
        raise CorruptStoreError(
            f"the configuration in the store at {store.uri} cannot be read: {error.errors()[0]['msg']}. It may be of a "
            "newer version of pisco-index."
        ) from None
    fixed = {"codec": store.meta.codec, "keep": store.meta.optional_columns}
    return config.model_copy(update={"corpus": corpus, "store": config.store.model_copy(update=fixed)})


# Sections of the configuration that decide which memory a store holds.
_KEPT_SECTIONS = ("corpus", "compression", "store")


def with_kept_settings(config: BuildConfig, kept: BuildConfig) -> tuple[BuildConfig, dict[str, Any]]:
    """Complete a configuration by the settings of a store.

    Args:
        config: configuration of an update.
        kept: configuration of the store, from ``kept_config``.

    Returns:
        The configuration with the store's values for all keys of ``corpus``, ``compression`` and ``store`` that were
        not given, and those of these values that differ from the defaults, by ``section.key``.

    Raises:
        ConfigError: a given value and one of the store exclude each other.
    """
    taken: dict[str, Any] = {}
    sections = {name: getattr(config, name) for name in BuildConfig.model_fields}
    for name in _KEPT_SECTIONS:
        given: Config = sections[name]
        # A store can get or lose its search index after its first build.
        own = given.model_fields_set | {"index"}
        stored = {key: value for key, value in getattr(kept, name) if key not in own}
        taken |= {f"{name}.{key}": value for key, value in stored.items() if value != getattr(given, key)}
        sections[name] = type(given).parse({**dict(given), **stored}, "settings given and kept in the store")
    return config.model_copy(update=sections), taken


def keeps_input_text(meta: StoreMeta, compression: CompressionConfig) -> bool:
    """Return True if a store keeps enough to put together the text that was compressed."""
    kept = meta.optional_columns
    return "text" in kept and ("title" in kept or "{title}" not in compression.template)
