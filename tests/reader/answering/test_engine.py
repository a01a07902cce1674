"""Many questions are answered in batches, in order, with what goes wrong on the question's own line."""

import threading
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pisco_index.errors import AnsweringInterruptedError, CorruptStoreError, PromptError, StoreError
from pisco_index.reader.answering import Answering
from pisco_index.reader.generator import FakeGenerator
from pisco_index.reader.memory_source import FakeMemorySource
from pisco_index.reader.questions import Question
from pisco_index.reader.retriever import FakeRetriever

VECTORS = {"a": torch.ones(2, 4), "b": torch.zeros(3, 4), "nan": torch.full((2, 4), torch.nan)}


def questions_of(*words):
    """Questions of some numbers of words, each about document a."""
    return [Question(f"q{i}", f"n{i} " * count, doc_ids=("a",)) for i, count in enumerate(words)]


def answering(questions, *, source=None, **options):
    limits = {name: options.pop(name) for name in ("context", "token_budget") if name in options}
    generator = FakeGenerator({each.text: f"answer {each.id}" for each in questions}, **limits)
    return Answering(source or FakeMemorySource(VECTORS), generator, **options)


def without_seconds(results):
    return [replace(each, seconds=0) for each in results]


def test_a_result_says_what_it_was_made_from():
    questions = [Question("1", "Who is it?", doc_ids=("a", "zz", "b")), Question("2", "Why?", doc_ids=("b",))]
    first, second = answering(questions).answer(questions)
    assert (first.id, first.question, first.answer, first.error) == ("1", "Who is it?", "answer 1", None)
    assert (first.documents, first.scores, first.missing) == (("a", "b"), (), ("zz",))
    assert (first.memory_tokens, first.text_tokens, first.prompt_tokens) == (5, 80, 8)
    assert first.seconds > 0
    assert (second.answer, second.documents, second.missing) == ("answer 2", ("b",), ())


def test_a_retriever_finds_the_documents_with_their_scores():
    questions = [Question("1", "Who?", doc_ids=("b",)), Question("2", "Why?")]
    retriever = FakeRetriever({"Who?": ["a", "gone", "b", "a"], "Why?": []})
    first, second = answering(questions, retriever=retriever, hits=3).answer(questions)
    assert (first.documents, first.scores, first.missing) == (("a", "b"), (1, 1 / 3), ("gone",))
    assert (second.answer, second.error) == (None, "No document was found.")


def test_the_number_of_documents_cuts_those_that_a_question_names():
    questions = [Question("1", "Who?", doc_ids=("a", "b"))]
    (result,) = answering(questions, hits=1).answer(questions)
    assert result.documents == ("a",)


def test_a_question_that_cannot_be_answered_leaves_the_others_alone():
    asked = {"fine": "a", "long " * 50: "a", "poisoned": "nan", "lost": "zz", "also": "b"}
    questions = [Question(text, text, doc_ids=(doc_id,)) for text, doc_id in asked.items()]
    engine = answering(questions, context=40, max_new_tokens=8)
    results = list(engine.answer(questions))
    assert [each.answer for each in results] == ["answer fine", None, None, None, "answer also"]
    errors = [each.error for each in results[1:4]]
    assert "does not fit the context of 40" in errors[0]
    assert "The memory of 'nan' is not finite" in errors[1]
    assert "The store holds no memory of the question's documents: 'zz'" in errors[2]
    assert results[3].missing == ("zz",)
    # Nothing is fetched, and nothing compressed, for a question without documents.
    assert all(ids for _, ids in engine.source.asked)


def test_a_prompt_that_only_the_generator_refuses_takes_no_neighbour_with_it():
    questions = questions_of(3, 9, 4)
    engine = answering(questions, context=20, max_new_tokens=10)
    object.__setattr__(engine.generator, "require_fit", lambda *_: None)
    refuse = FakeGenerator({}, context=20).require_fit
    answer_batch = engine.generator.answer_batch

    def refusing(texts, memories, *, max_new_tokens, prompts):
        refuse(prompts, max_new_tokens)
        return answer_batch(texts, memories, max_new_tokens=max_new_tokens, prompts=prompts)

    engine.generator.answer_batch = refusing
    results = list(engine.answer(questions))
    assert [each.answer for each in results] == ["answer q0", None, "answer q2"]
    assert "does not fit" in results[1].error


class FailingSource(FakeMemorySource):
    """A source that raises an error for the memory of document "b"."""

    def __init__(self, error):
        super().__init__(VECTORS)
        self._error = error

    def memories(self, requests):
        if any("b" in ids for _, ids in requests):
            raise self._error
        return super().memories(requests)


def test_damaged_memory_is_an_error_of_its_question():
    questions = [*questions_of(1, 2, 3), Question("bad", "Why?", doc_ids=("b",)), *questions_of(4, 5)[1:]]
    found = list(answering(questions, source=FailingSource(CorruptStoreError("bad bytes"))).answer(questions))
    assert [each.error for each in found] == [None, None, None, "bad bytes", None]


def test_a_refused_batch_is_halved_until_the_refused_question_is_alone():
    questions = questions_of(*[3] * 32, 9)
    engine = answering(questions, context=20)
    engine.generator.require_fit = lambda *_: None
    calls = []

    def answer_batch(texts, *_, **__):
        calls.append(len(texts))
        if any(len(text.split()) == 9 for text in texts):
            raise PromptError("refused")
        return texts

    engine.generator.answer_batch = answer_batch
    assert [each.error for each in engine.answer(questions)] == [None] * 32 + ["refused"]
    assert len(calls) < 16


def test_a_question_that_is_no_unicode_is_an_error_of_its_own():
    questions = [Question("1", "Who?", doc_ids=("a",)), Question("2", "\udce9t\udce9", doc_ids=("a",))]
    first, second = answering(questions).answer(questions)
    assert (first.answer, second.answer, second.error) == ("answer 1", None, "The question is not valid Unicode.")


@pytest.mark.parametrize("error", [StoreError("the disk is gone"), ZeroDivisionError("a bug")])
def test_other_errors_of_the_thread_reach_the_caller(error):
    questions = [*questions_of(1, 2, 3), Question("b", "b", doc_ids=("b",))]
    found = answering(questions, source=FailingSource(error), window=3).answer(questions)
    assert [next(found).id for _ in range(3)] == ["q0", "q1", "q2"]
    with pytest.raises(type(error), match=str(error)):
        next(found)
    assert not running()


def running():
    return [thread for thread in threading.enumerate() if "answering" in thread.name]


def test_closing_ends_the_thread():
    questions = questions_of(*range(1, 30))
    found = answering(questions, window=4).answer(questions)
    next(found)
    assert running()
    found.close()
    assert not running()


def test_memory_is_held_for_three_batches_and_no_more():
    questions = questions_of(*range(1, 30))
    source = FakeMemorySource(VECTORS)
    engine = answering(questions, source=source, token_budget=1)
    ahead = []
    list(engine.answer(questions, progress=lambda done, _: ahead.append(len(source.asked) - done)))
    assert max(ahead) <= 2


def test_answers_are_kept_by_the_batch_and_taken_up():
    questions = questions_of(*range(1, 9))
    kept = []
    found = answering(questions, token_budget=30, window=4).answer(questions, keep=kept.append)
    whole = without_seconds(found)
    assert sorted(each.id for batch in kept for each in batch) == [each.id for each in questions]
    # The longest questions of a window come first.
    assert "q3" in {each.id for each in kept[0]}
    known = {each.id: replace(each, answer="kept") for batch in kept[:2] for each in batch}
    engine = answering(questions, token_budget=30, window=4)
    again = without_seconds(engine.answer(questions, known=known))
    assert again == [replace(each, answer="kept") if each.id in known else each for each in whole]
    assert len(engine.generator.asked) == 8 - len(known)
    assert without_seconds(engine.answer(questions, known={each.id: each for each in whole})) == whole


@given(
    st.lists(st.integers(1, 40), max_size=40),
    st.integers(1, 9),
    st.integers(1, 200),
    st.data(),
)
@settings(max_examples=40, deadline=None)
def test_batches_do_not_depend_on_where_answering_begins(words, window, token_budget, data):
    """Every question is answered once and in order; each batch keeps its budget, and is the same in a later run."""
    questions = questions_of(*words)
    options = {"window": window, "token_budget": token_budget, "max_new_tokens": 5}
    engine = answering(questions, **options)
    everything = without_seconds(engine.answer(questions))
    assert [each.id for each in everything] == [each.id for each in questions]
    assert [each.answer for each in everything] == [f"answer {each.id}" for each in questions]
    asked = iter(engine.generator.asked)
    batches = [[next(asked)[0] for _ in range(size)] for size in engine.generator.batches]
    for batch in batches:
        longest = max(len(text.split()) for text in batch) + 2
        assert len(batch) == 1 or len(batch) * (longest + 5) <= token_budget
    start = data.draw(st.integers(0, len(questions)))
    later = answering(questions, **options)
    assert without_seconds(later.answer(questions, start=start)) == everything[start:]
    asked = iter(later.generator.asked)
    assert all([next(asked)[0] for _ in range(size)] in batches for size in later.generator.batches)


def test_a_stop_comes_after_a_batch():
    questions = questions_of(*range(1, 9))
    engine = answering(questions, window=4, token_budget=1)
    done = []
    found = engine.answer(questions, progress=lambda *each: done.append(each), should_stop=lambda: len(done) == 6)
    assert [next(found).id for _ in range(4)] == ["q0", "q1", "q2", "q3"]
    with pytest.raises(AnsweringInterruptedError):
        next(found)
    assert done == [(n, 8) for n in range(1, 7)]
    assert not running()
