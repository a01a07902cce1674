"""Record which shards were in flight when a process crashed."""

import json
from collections import Counter
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from ...store import local_folder, resolve_uri

CRASHES_NAME = ".build.crashes"


class CrashLog:
    """Counts, for each shard, the processes that died while the shard was in flight.

    The log lies next to the store's lock. For a store in an object store nothing is kept. If the store's folder does
    not exist yet, the log makes it, and removes it again if it stays empty.

    Args:
        uri: address of the store.

    Attributes:
        counts: number of crashes by shard number, those of earlier processes included.
    """

    def __init__(self, uri: str):
        folder = local_folder(resolve_uri(uri))
        self._path: Path | None = None if folder is None else folder / CRASHES_NAME
        self._made_folder = False
        self.counts: Counter[int] = Counter()
        with suppress(OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            if self._path is not None:
                found = json.loads(self._path.read_text())
                self.counts.update({int(shard): int(times) for shard, times in found["crashes"].items()})
                self.counts.update(map(int, found["in_hand"]))

    def note(self, in_flight: Collection[int]) -> None:
        """Write down which shards are in flight now."""
        if self._path is None:
            return
        # The log only saves time after a crash. A full disk must not end a build that may have nothing to write.
        with suppress(OSError):
            if not self._path.parent.exists():
                self._path.parent.mkdir(parents=True)
                self._made_folder = True
            # A store made by someone else may have a link there, which must not be written through.
            self._draft.unlink(missing_ok=True)
            with self._draft.open("x") as file:
                json.dump({"crashes": self.counts, "in_hand": sorted(in_flight)}, file)
            self._draft.replace(self._path)

    def forget(self, shard: int) -> None:
        """Forget a shard's crashes, because it is finished."""
        self.counts.pop(shard, None)

    def close(self) -> None:
        """Write down that nothing is in flight; delete the log if there were no crashes."""
        if self.counts:
            self.note(())
        else:
            self.delete()

    def delete(self) -> None:
        """Delete the log."""
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
