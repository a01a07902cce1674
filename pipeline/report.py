"""The end of a build: its report, and the errors of a build that is not complete."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..errors import BuildIncompleteError, BuildInterruptedError, some
from ..store import fallbacks
from .driver import Driven
from .planning.plan import Changes
from .turns import Resume, Turn


@dataclass(frozen=True)
class BuildReport:
    """The result of a build.

    Attributes:
        uri: address of the store.
        shards: number of shards of the plan.
        done_before: number of shards that an earlier run had committed.
        committed: number of shards that this run committed.
        dropped: number of records left out on purpose, by reason.
        rejected: number of records left out because they cannot be used, by reason; the store's table ``rejected``
            names them.
        changes: changes of the update that this run made or resumed; None if there was no update.
        gone: number of documents of the store that the corpus lacks, and that stay there without ``prune``.
        fallbacks: number of documents that lost too much in the store's codec and were written by another one, by that
            codec's name. All runs count, so that a replaced document counts again.
        seconds: seconds that this run took.
    """

    uri: str
    shards: int
    done_before: int
    committed: int
    dropped: Mapping[str, int]
    rejected: Mapping[str, int]
    changes: Changes | None
    gone: int
    fallbacks: Mapping[str, int]
    seconds: float


@dataclass(frozen=True)
class Taken:
    """A turn that was taken, and the shards committed before it and in it."""

    turn: Turn
    done_before: int
    committed: int


def report(uri: str, turns: Sequence[Taken], seconds: float) -> BuildReport:
    """Return the report of a build that took these turns."""
    plan = turns[-1].turn.plan
    # A plan that was only found to be finished changed nothing in this run.
    active = [each.turn.plan for each in turns if each.committed or not isinstance(each.turn, Resume)]
    return BuildReport(
        uri=uri,
        shards=sum(len(each.turn.plan.shards) for each in turns),
        done_before=sum(each.done_before for each in turns),
        committed=sum(each.committed for each in turns),
        dropped=plan.dropped,
        rejected=plan.rejected,
        changes=active[-1].changes if active else None,
        gone=plan.changes.gone if plan.changes else 0,
        fallbacks=fallbacks(uri),
        seconds=seconds,
    )


def interrupted(uri: str, done: int, planned: int) -> BuildInterruptedError:
    """Return the error of a build that a signal stopped."""
    return BuildInterruptedError(
        f"stopped with {done} of {planned} shards committed to {uri}. Run the same command again to resume."
    )


def require_complete(uri: str, driven: Driven, planned: int) -> None:
    """Check that all shards were committed with all of their documents.

    Raises:
        BuildIncompleteError: shards were given up, or documents could not be compressed.
    """
    problems = []
    if failed := driven.failed:
        problems.append(
            f"{len(failed)} of {planned} shards failed, even when they were isolated, and are not in {uri}. The first, "
            f"shard {failed[0].number}: {failed[0].error}. All other shards are committed. Run the same command again "
            "to retry."
        )
    if quarantined := driven.quarantined:
        named = some([document.doc_id for document in quarantined])
        problems.append(
            f"{len(quarantined):,} documents could not be compressed and are stored with their error in place of "
            f"memory: {named}; the first: {quarantined[0].error}. All other documents are in {uri}."
        )
    if problems:
        raise BuildIncompleteError(" ".join(problems))
