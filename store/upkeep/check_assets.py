"""Checks of a store's assets: the description, the calibrations, and the notes about shards without rows."""

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import lance

from ...errors import CorruptStoreError, StoreError
from ..assets import EMPTY_SHARD_PREFIX, META_ASSET, NOTE_PREFIXES
from ..codecs import codec_by_name, is_calibrated
from ..codecs.calibration import CALIBRATION_PREFIX, Calibration, asset_name, reference_of
from ..meta import StoreMeta
from ..plans import is_altered, plan_in_force
from ..schema import ASSETS_SCHEMA
from ..table.addresses import ASSETS, MEMORY, resolve_uri
from ..table.datasets import open_table
from ..table.rows import fragment_name, read_rows
from .check_files import (
    changed_files,
    changed_problem,
    fragment_problem,
    open_or_report,
    read_record,
    require_store,
)
from .findings import RESTORE, Findings, Problem


def check_assets(uri: str | Path) -> tuple[Findings, dict[str, bytes]]:
    """Begin the check of a store: read and check everything that it keeps apart from its rows.

    Returns:
        The problems found so far, and the values of the readable assets by name.

    Raises:
        StoreError: there is no store.
    """
    uri = resolve_uri(uri)
    findings = Findings(uri)
    require_store(uri)
    read_record(findings)
    # The version of memory is fixed before the assets are read: they then hold everything that its rows refer to.
    with suppress(StoreError):
        memory = open_table(uri, MEMORY)
        findings.version, findings.plan = memory.version, plan_in_force(memory)
        findings.is_altered = is_altered(memory)
    dataset = open_or_report(findings, ASSETS, ASSETS_SCHEMA)
    if dataset is None:
        return findings, {}
    values = _read_assets(findings, dataset)
    _check_calibrations(findings, values)
    _check_description(findings, values)
    return findings, values


def empty_shards_of(findings: Findings, names: Iterable[str]) -> set[int]:
    """Return the shards that the assets record as empty; a name without a number is added to the problems."""
    numbers = set[int]()
    for name in names:
        if name.startswith(EMPTY_SHARD_PREFIX):
            number = name.removeprefix(EMPTY_SHARD_PREFIX)
            if number.isdecimal():
                numbers.add(int(number))
            else:
                findings.add(Problem(ASSETS, f"the name {name!r} does not end with a shard's number.", RESTORE))
    return numbers


def _read_assets(findings: Findings, dataset: lance.LanceDataset) -> dict[str, bytes]:
    values: dict[str, bytes] = {}
    repeated: set[str] = set()

    def read(fragment: lance.LanceFragment) -> None:
        for _, batch in read_rows(dataset, ASSETS_SCHEMA.names, fragments=[fragment.fragment_id], batch_rows=1):
            name, value = batch.column(0)[0].as_py(), batch.column(1)[0].as_py()
            if name in values and not name.startswith(NOTE_PREFIXES):
                repeated.add(name)
            values[name] = value

    for fragment in dataset.get_fragments():
        changed = changed_files(findings, ASSETS, fragment)
        problem = fragment_problem(findings.uri, ASSETS, dataset, fragment, read) or changed_problem(changed)
        if problem is not None:
            findings.add(Problem(ASSETS, problem, RESTORE, fragment_name(fragment)))
    findings.add(*(Problem(ASSETS, f"the name {name!r} occurs twice.", RESTORE) for name in sorted(repeated)))
    return values


def _check_calibrations(findings: Findings, values: dict[str, bytes]) -> None:
    for name in (name for name in values if name.startswith(CALIBRATION_PREFIX)):
        reference, calibration = reference_of(values[name]), None
        try:
            if asset_name(reference) != name:
                raise CorruptStoreError(f"{name} fails its checksum.")
            calibration = Calibration.from_bytes(values[name])
        except StoreError as error:
            findings.add(Problem(ASSETS, f"{error} Payloads that need it were not decoded.", RESTORE))
        with suppress(ValueError):
            findings.calibrations[int(name.removeprefix(CALIBRATION_PREFIX), 16)] = calibration


def _check_description(findings: Findings, values: dict[str, bytes]) -> None:
    if META_ASSET not in values:
        findings.add(Problem(ASSETS, "the store's description is not among its assets.", RESTORE))
        return
    try:
        findings.meta = StoreMeta.from_json(values[META_ASSET], findings.uri)
    except StoreError as error:
        findings.add(Problem(ASSETS, str(error), RESTORE))
        return
    codec = findings.meta.codec
    if is_calibrated(codec_by_name(codec)) and not findings.calibrations:
        what = f"the codec is {codec}, and no calibration is there. Payloads that need one were not decoded."
        findings.add(Problem(ASSETS, what, RESTORE))
