"""Shards that a process had in hand when it died: after a crash nobody else is left to tell."""

import json
from collections import Counter
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from ...store import local_folder, resolve_uri

CRASHES_NAME = ".build.crashes"


class CrashLog:
    """Counts, for each shard, the processes that ended without a word while they had it in hand.

    It is kept beside the store's lock, for builds that compute in their own process; in an object store nothing is.
    Where there is no store yet its folder is made, and taken away again if nothing comes into it.

    Args:
        uri: of the store.
    """

    def __init__(self, uri: str):
        folder = local_folder(resolve_uri(uri))
        self._path: Path | None = None if folder is None else folder / CRASHES_NAME
        self._made_folder = False
        self.counts: Counter[int] = Counter()
        with suppress(OSError, ValueError, KeyError, TypeError):
            if self._path is not None:
                found = json.loads(self._path.read_text())
                self.counts.update({int(shard): int(times) for shard, times in found["crashes"].items()})
                self.counts.update(map(int, found["in_hand"]))

    def holds(self, shards: Collection[int]) -> None:
        """Note which shards are in hand."""
        self._write(shards)

    def done(self, shard: int) -> None:
        """Forget a shard's crashes."""
        self.counts.pop(shard, None)

    def close(self) -> None:
        """Note that the build ends with a word; without crashes nothing is left of the log."""
        if self.counts:
            self._write(())
        else:
            self.forget()

    def forget(self) -> None:
        """Delete the log: all shards are done."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)
            self._draft.unlink(missing_ok=True)
            if self._made_folder:
                with suppress(OSError):
                    self._path.parent.rmdir()

    @property
    def _draft(self) -> Path:
        assert self._path is not None
        return self._path.with_name(f"{self._path.name}.draft")

    def _write(self, in_hand: Collection[int]) -> None:
        if self._path is None:
            return
        # It only saves time after a crash: a disk that is full must not end a build that may have nothing to write.
        with suppress(OSError):
            if not self._path.parent.exists():
                self._path.parent.mkdir(parents=True)
                self._made_folder = True
            # Somebody else's store may have a link there.
            self._draft.unlink(missing_ok=True)
            with self._draft.open("x") as file:
                json.dump({"crashes": self.counts, "in_hand": sorted(in_hand)}, file)
            self._draft.replace(self._path)
