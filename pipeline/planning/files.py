"""The files of a corpus: compared with those that a plan was made from, and watched while a build reads them."""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import xxhash

from ...corpus import Corpus, Source, reading_options, relocate
from ...errors import CorpusError, PlanMismatchError
from .plan import Plan, PlannedFile

# Bytes hashed at a time.
_HASH_CHUNK = 1 << 20
# Largest number of differences that a message lists.
_SHOWN = 10


def describe_files(corpus: Corpus) -> tuple[PlannedFile, ...]:
    """Return the name, size and digest of each corpus file. Several files are hashed at a time.

    Raises:
        CorpusError: a file cannot be read.
    """
    with ThreadPoolExecutor() as threads:
        return tuple(threads.map(_describe_file, corpus.sources))


def resume_plan(plan: Plan, corpus: Corpus) -> Plan:
    """Check that a corpus is the one that was planned, and return the plan with the present paths of its files.

    Raises:
        PlanMismatchError: the corpus changed. The message names files that were added, are missing or have other
            content, and reading options that differ.
    """
    present = describe_files(corpus)
    if changes := list(_changes(plan, present, corpus.sources)):
        more = f"; and {len(changes) - _SHOWN} more" if len(changes) > _SHOWN else ""
        raise PlanMismatchError(
            f"the corpus is not the one this store's build was planned for: {'; '.join(changes[:_SHOWN])}{more}. Give "
            "the same corpus to resume the build, and the changed one when that is done; or plan again from what the "
            "store holds (--replan)."
        )
    specs = (relocate(spec, source.path) for spec, source in zip(plan.sources, corpus.sources, strict=True))
    return replace(plan, sources=tuple(specs))


def _changes(plan: Plan, present: Sequence[PlannedFile], sources: Sequence[Source]) -> Iterator[str]:
    before, now = [file.name for file in plan.files], [file.name for file in present]
    if before == now:
        for planned, found in zip(plan.files, present, strict=True):
            yield from _content_changes(planned, found)
        for spec, source in zip(plan.sources, sources, strict=True):
            yield from _reading_changes(spec, source)
    elif set(before) == set(now):
        yield "the files are given in another order"
    else:
        yield from (f"{name} is missing" for name in sorted(set(before) - set(now)))
        yield from (f"{name} is new" for name in sorted(set(now) - set(before)))


def _content_changes(planned: PlannedFile, found: PlannedFile) -> Iterator[str]:
    if planned.size != found.size:
        yield f"{found.name} had {planned.size} bytes and has {found.size}"
    elif planned.digest != found.digest:
        yield f"{found.name} has other content"


def _reading_changes(spec: Mapping[str, Any], source: Source) -> Iterator[str]:
    # Compare what the configuration was resolved to: naming the field that would be recognised changes nothing. Nor
    # does another wording of an unrecognised file's error.
    before, now = reading_options(spec), reading_options(source.spec)
    for key in sorted(before.keys() & now.keys()):
        if before[key] != now[key]:
            yield f"{source.name} was read with {key} {before[key]!r} and is to be read with {now[key]!r}"


class CorpusWatch:
    """Detects corpus files that are written to while a build runs, by their size, time and, if these differ, content.

    Args:
        sources: sources of the corpus, in the order of the plan's files.
    """

    def __init__(self, sources: Sequence[Source]):
        self._sources = sources
        self._states = [_state(source) for source in sources]

    def require_unchanged(self, files: Sequence[PlannedFile] | None = None) -> None:
        """Check that no file changed since the last check.

        Args:
            files: files as they were planned. With them, a file that was only touched counts as unchanged.

        Raises:
            CorpusError: a file changed; the message names the first one.
        """
        for index, source in enumerate(self._sources):
            state = _state(source)
            if state == self._states[index]:
                continue
            if files is None or _describe_file(source) != files[index]:
                raise CorpusError(
                    f"{source.path}: the file changed while the build was reading it. What is already committed has "
                    "the planned content. Put the planned file back and run the build again, or build the changed one "
                    "into another store."
                )
            self._states[index] = state


def _describe_file(source: Source) -> PlannedFile:
    path = Path(source.path)
    digest = xxhash.xxh3_128()
    try:
        with path.open("rb") as file:
            while chunk := file.read(_HASH_CHUNK):
                digest.update(chunk)
        return PlannedFile(source.name, path.stat().st_size, digest.hexdigest())
    except OSError as error:
        raise CorpusError(f"{path}: cannot be read: {error.strerror}.") from error


def _state(source: Source) -> tuple[int, int]:
    try:
        status = Path(source.path).stat()
    except OSError as error:
        raise CorpusError(f"{source.path}: cannot be read: {error.strerror}.") from error
    return status.st_size, status.st_mtime_ns
