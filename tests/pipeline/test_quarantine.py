"""Finding poison: the documents that fail on their own, and no others."""

import pytest

from pisco_index.errors import CorpusError
from pisco_index.pipeline.planning.plan import Shard
from pisco_index.pipeline.pools.fake import FakePool
from pisco_index.pipeline.pools.watchdog import WorkerDiedError
from pisco_index.pipeline.quarantine import PIECE, TooManyFailuresError, find_poison

SHARD = Shard(7, (), 1000, 10)


class PoisonPool(FakePool):
    """Fails at documents in some places; at ``flaky`` ones only the first time that they are tried."""

    def __init__(self, documents, poison=(), flaky=()):
        super().__init__(
            None,
            documents=documents,
            poison={(SHARD.number, place): WorkerDiedError(f"died of {place}") for place in poison},
        )
        self.flaky = set(flaky)

    def attempt(self, shard, start, stop):
        super().attempt(shard, start, stop)
        for place in sorted(self.flaky & {*range(start, stop)}):
            self.flaky.remove(place)
            raise RuntimeError("by chance")

    @property
    def attempts(self):
        return [places for method, _, *places in self.calls if method == "attempt"]


@pytest.mark.parametrize("documents", [0, 1, PIECE - 1, PIECE, 5 * PIECE + 3])
def test_a_sound_shard_has_none(documents):
    pool = PoisonPool(documents)
    assert find_poison(pool, SHARD) == {}
    assert [place for piece in pool.attempts for place in range(*piece)] == list(range(documents))


@pytest.mark.parametrize("places", [[0], [PIECE - 1, PIECE], [3, 4, 200], [299]])
def test_documents_that_fail_on_their_own_are_found(places):
    pool = PoisonPool(300, poison=places)
    assert find_poison(pool, SHARD) == {place: f"WorkerDiedError: died of {place}" for place in places}
    assert all(pool.attempts.count([place, place + 1]) == 2 for place in places)


def test_what_fails_by_chance_is_not_poison():
    assert find_poison(PoisonPool(300, flaky=[5, 70, 71]), SHARD) == {}


def test_a_document_that_fails_together_with_chance_is_found():
    assert list(find_poison(PoisonPool(100, poison=[9], flaky=[4, 9]), SHARD)) == [9]


def test_where_many_fail_it_is_not_the_documents():
    pool = PoisonPool(300, poison=range(40, 300))
    with pytest.raises(TooManyFailuresError, match=r"^31 of the first 71 documents fail, each on its own.*died of 70$"):
        find_poison(pool, SHARD)
    assert len(find_poison(PoisonPool(8, poison=range(8)), SHARD)) == 8


def test_a_corpus_that_cannot_be_read_is_not_poison():
    pool = FakePool(None, documents=100, poison={(SHARD.number, 3): CorpusError("line 3")})
    with pytest.raises(CorpusError):
        find_poison(pool, SHARD)


def test_it_stops_when_told():
    pool = PoisonPool(300, poison=[1])
    assert find_poison(pool, SHARD, lambda: len(pool.attempts) > 5) is None
    assert len(pool.attempts) == 6
