"""The loop answers what it accepts, refuses what it has no room for, and outlives what goes wrong."""

import threading
from types import SimpleNamespace

import pytest
import torch

from pisco_index.errors import (
    CorruptStoreError,
    EngineError,
    MissingDocumentsError,
    PromptError,
    QueueFullError,
    StoreError,
)
from pisco_index.reader.live import loop
from pisco_index.reader.live.engine import FakeEngine
from pisco_index.reader.live.loop import LiveAnswering
from pisco_index.reader.live.question import LiveQuestion
from pisco_index.reader.memory_source import FakeMemorySource
from pisco_index.reader.retriever import Hit

VECTORS = {"a": torch.ones(2, 4), "b": torch.zeros(3, 4), "nan": torch.full((2, 4), torch.nan)}


class Found:
    """A reader that finds documents a and b for every question, except for "Nothing"."""

    def search_many(self, questions, hits, _threads):
        if any(question == "Broken" for question in questions):
            raise StoreError("the index is broken")
        return [[] if question == "Nothing" else [Hit("a", 2.0), Hit("b", 1.0)][:hits] for question in questions]


class Gate(FakeMemorySource):
    """A source that waits until it is opened."""

    def __init__(self):
        super().__init__(VECTORS)
        self.opened, self.reached = threading.Event(), threading.Event()

    def memories(self, requests):
        self.reached.set()
        assert self.opened.wait(60)
        yield from super().memories(requests)


class Heard:
    """A listener that keeps what it is told."""

    def __init__(self):
        self.grounds, self.pieces, self.result, self.over = None, [], None, threading.Event()

    def prepared(self, grounds):
        self.grounds = grounds

    def piece(self, text):
        self.pieces.append(text)

    def answered(self, result):
        self.result = result
        self.over.set()

    def failed(self, error):
        self.result = error
        self.over.set()

    def wait(self):
        assert self.over.wait(60)
        return self.result


@pytest.fixture
def index():
    return SimpleNamespace(source=FakeMemorySource(VECTORS), reader=Found())


@pytest.fixture
def asked(index):
    def ask(live, text="Who is it?", doc_ids=("a",), *, source=None, **options):
        heard = Heard()
        store = index if source is None else SimpleNamespace(source=source, reader=index.reader)
        settings = {"hits": 5, "max_new_tokens": 10} | options
        return heard, live.submit(LiveQuestion(store, text, doc_ids, **settings), heard)

    return ask


def test_an_answer_comes_with_what_it_is_made_from(asked):
    with LiveAnswering(FakeEngine({5: "every thing is so"})) as live:
        heard, _ = asked(live, streams=True)
        found, _ = asked(live, doc_ids=None)
        result = heard.wait()
        assert (result.text, result.reason, result.tokens) == ("etis", "stop", 4)
        assert "".join(heard.pieces) == "etis"
        assert (heard.grounds.prompt_tokens, heard.grounds.memory_tokens, heard.grounds.text_tokens) == (5, 2, 32)
        assert found.wait().text == "s"
        assert [(each.doc_id, each.score, each.memory_tokens) for each in found.grounds.documents] == [
            ("a", 2.0, 2),
            ("b", 1.0, 3),
        ]
        assert not found.pieces
        parts = result.timings
        assert parts.total >= parts.first_token >= parts.queue
    assert (live.queued, live.running) == (0, 0)


@pytest.mark.parametrize(
    ("text", "doc_ids", "error"),
    [
        ("Who?", ("a", "zz"), MissingDocumentsError),
        ("Who?", ("nan",), CorruptStoreError),
        ("", ("a",), PromptError),
        ("\ud800", ("a",), PromptError),
        ("long " * 40, ("a",), PromptError),
        ("Nothing", None, PromptError),
        ("Broken", None, StoreError),
    ],
)
def test_a_question_that_cannot_be_answered_leaves_the_others_alone(asked, text, doc_ids, error):
    gate = Gate()
    with LiveAnswering(FakeEngine({}, context=30)) as live:
        first, _ = asked(live, source=gate)
        assert gate.reached.wait(60)
        # These are prepared together.
        good, _ = asked(live)
        bad, _ = asked(live, text, doc_ids)
        other, _ = asked(live, "How?", ("b",))
        gate.opened.set()
        assert isinstance(bad.wait(), error)
        assert [each.wait().text for each in (first, good, other)] == ["s"] * 3


def test_a_full_queue_refuses_and_a_question_that_is_given_up_frees_its_place(asked):
    gate = Gate()
    with LiveAnswering(FakeEngine({}), queue=3) as live:
        first, _ = asked(live, source=gate)
        assert gate.reached.wait(60)
        waiting = [asked(live) for _ in range(2)]
        with pytest.raises(QueueFullError, match="questions waiting: 3"):
            asked(live)
        waiting[0][1].cancel()
        last, _ = asked(live)
        with pytest.raises(QueueFullError):
            asked(live)
        gate.opened.set()
        assert [each.wait().text for each in (first, waiting[1][0], last)] == ["s"] * 3
    assert waiting[0][0].result is None


def test_an_answer_in_progress_that_is_given_up_makes_room(asked):
    engine = FakeEngine({5: "so " * 1_000_000}, token_budget=1_000_020)
    with LiveAnswering(engine) as live:
        long, ticket = asked(live, max_new_tokens=1_000_000, streams=True)
        short, _ = asked(live, "Is it?", ("a", "b"), max_new_tokens=1)
        while not long.pieces:
            pass
        assert short.result is None
        ticket.cancel()
        assert short.wait().text == "s"
    assert not long.over.is_set()
    assert max(engine.batches) == 1


def test_the_answers_in_progress_keep_to_the_budget(asked):
    gate = Gate()
    engine = FakeEngine({5: "a b c"}, token_budget=32)
    with LiveAnswering(engine) as live:
        heard = [asked(live, source=gate)[0] for _ in range(7)]
        gate.opened.set()
        # A prompt of 5 tokens with an answer of 10 takes 15 of 32. One above the budget is answered alone.
        heard.append(asked(live, "long " * 40)[0])
        assert [each.wait().text for each in heard] == ["abc"] * 7 + ["s"]
    assert max(engine.batches) == 2


def test_a_question_waits_for_others_to_be_read_with(asked):
    engine = FakeEngine({5: "a b c"})
    with LiveAnswering(engine, wait=0.5) as live:
        heard = [asked(live)[0] for _ in range(5)]
        assert [each.wait().text for each in heard] == ["abc"] * 5
    assert engine.batches[:3] == [5] * 3


@pytest.mark.parametrize("error", [RuntimeError("out of memory"), EngineError("gone"), KeyError("a bug")])
def test_an_engine_that_fails_is_used_again(asked, error, caplog):
    engine = FakeEngine({5: "a b c"})
    with LiveAnswering(engine) as live:
        assert live.problem() is None
        engine.error = error
        heard, _ = asked(live)
        assert isinstance(heard.wait(), EngineError)
        assert str(error) in live.problem()
        again, _ = asked(live)
        assert again.wait().text == "abc"
        assert live.problem() is None
    assert "the engine failed" in caplog.text


def test_the_end_waits_for_what_was_accepted_and_takes_no_more(asked):
    gate = Gate()
    live = LiveAnswering(FakeEngine({}))
    with live:
        heard = [asked(live, source=gate)[0] for _ in range(4)]
        threading.Timer(0.1, gate.opened.set).start()
    assert [each.result.text for each in heard] == ["s"] * 4
    with pytest.raises(QueueFullError, match="stopping"):
        asked(live)


def test_an_error_in_the_block_ends_it_at_once(asked):
    gate = Gate()

    def fail():
        with LiveAnswering(FakeEngine({})) as live:
            heard.append(asked(live, source=gate)[0])
            gate.reached.wait(60)
            gate.opened.set()
            raise KeyboardInterrupt

    heard = []
    with pytest.raises(KeyboardInterrupt):
        fail()
    assert isinstance(heard[0].result, EngineError) or heard[0].result.text == "s"


def test_an_answer_whose_text_cannot_be_made_has_failed(asked):
    engine = FakeEngine({})
    engine.text = lambda _ids: 1 / 0
    with LiveAnswering(engine) as live:
        assert isinstance(asked(live)[0].wait(), EngineError)


def test_a_failure_does_not_count_for_ever(asked, monkeypatch):
    engine = FakeEngine({})
    engine.error = RuntimeError("no memory")
    with LiveAnswering(engine) as live:
        asked(live)[0].wait()
        assert "no memory" in live.problem()
        monkeypatch.setattr(loop, "_RECENT", 0)
        assert live.problem() is None
