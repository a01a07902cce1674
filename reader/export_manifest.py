"""The manifest of an export: its settings, and the parts that are finished."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any, Self

import xxhash

from ..configs.names import ExportFormat, Stage
from ..errors import InputError, some
from .reader import Reader

MANIFEST = "manifest.json"
MANIFEST_VERSION = 1


@dataclass(frozen=True)
class Manifest:
    """Settings and finished parts of an export, as its ``manifest.json`` holds them; docs/export.md has the keys."""

    store: Mapping[str, Any]
    format: ExportFormat
    stage: Stage
    dtype: str
    dim: int
    ids: str | None
    part_documents: int
    complete: bool = False
    parts: tuple[Mapping[str, Any], ...] = ()
    manifest_version: int = MANIFEST_VERSION
    package_version: str = ""

    @classmethod
    def begin(
        cls,
        reader: Reader,
        *,
        format: ExportFormat,  # noqa: A002 the manifest's own key
        dtype: str,
        stage: Stage,
        ids: Sequence[str] | None,
        part_documents: int,
    ) -> Self:
        """Return the manifest of an export that has no part yet."""
        meta = reader.meta
        return cls(
            store={
                "version": reader.version,
                "format_version": meta.format_version,
                "fingerprint": meta.fingerprint.digest,
                "codec": meta.codec,
                "created_at": meta.created_at.isoformat(),
            },
            format=format,
            stage=stage,
            dtype=dtype,
            dim=meta.dim if stage == meta.stage else reader.connector.out_dim,
            ids=None if ids is None else xxhash.xxh3_128_hexdigest(json.dumps(list(ids)).encode()),
            part_documents=part_documents,
            package_version=installed_version("pisco-index"),
        )

    @classmethod
    def read(cls, folder: Path) -> Self | None:
        """Read the manifest of a folder; return None for a folder that is new or empty.

        Raises:
            InputError: if the folder is a file, holds something that is no export, or has an unreadable manifest.
        """
        if folder.is_file():
            raise InputError(f"{folder}: this is a file, but an export needs a folder. Name a new or empty folder.")
        path = folder / MANIFEST
        if not path.is_file():
            # Hidden files do not count: a manifest that was not finished is one.
            if folder.is_dir() and (names := sorted(each.name for each in folder.iterdir() if each.name[0] != ".")):
                raise InputError(
                    f"{folder}: the folder is no export but holds {some(names)}. Name a new or empty folder."
                )
            return None
        try:
            values = json.loads(path.read_text("utf-8"))
            if values["manifest_version"] != MANIFEST_VERSION:
                raise ValueError(f"manifest_version {values['manifest_version']}")
            return cls(**(values | {"parts": tuple(values["parts"])}))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{path}: this is no manifest of an export of this version ({error!r}). Name a new or empty folder."
            ) from error

    def write(self, folder: Path) -> None:
        """Replace the folder's manifest atomically."""
        content = json.dumps(asdict(self), indent=1, ensure_ascii=False)
        unfinished = folder / f".{MANIFEST}.tmp"
        try:
            with unfinished.open("w", encoding="utf-8") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            unfinished.replace(folder / MANIFEST)
        except OSError as error:
            raise InputError(f"{folder / MANIFEST}: the file cannot be written: {error.strerror}.") from error

    def require_settings(self, wanted: Self, folder: Path) -> None:
        """Check that this manifest, read from a folder, has the settings of the export that is wanted.

        Any number of documents per part will do if the wanted manifest gives 0.

        Raises:
            InputError: naming the settings that differ.
        """
        names = ["store", "format", "stage", "dtype", "dim", "ids"]
        names += ["part_documents"] * bool(wanted.part_documents)
        if changed := [name for name in names if getattr(self, name) != getattr(wanted, name)]:
            shown = ", ".join(f"{name} {getattr(self, name)!r}, not {getattr(wanted, name)!r}" for name in changed)
            raise InputError(
                f"{folder}: the folder holds another export: {shown}. Give the same settings, or name another folder."
            )
