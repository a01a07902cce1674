"""A file of questions becomes a file of answers, which equal those given one by one."""

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import asdict, replace
from importlib import metadata

import pytest
import torch

from pisco_index import Decoder, Reader, new_tiny_checkpoint, open_checkpoint
from pisco_index.errors import (
    AnsweringInterruptedError,
    FingerprintMismatchError,
    InputError,
    QuestionsError,
    StoreError,
)
from pisco_index.reader.answering import AnswerSettings, answer_file, read_answers
from pisco_index.reader.answering.continued import settings_path
from pisco_index.reader.memory_source import open_source
from pisco_index.reader.questions import read_questions

SETTINGS = AnswerSettings(dtype="float32", device="cpu", max_new_tokens=4, token_budget=400, window=8)


def lines_of(count=20, documents=True):
    for i in range(count):
        named = {"doc_ids": [f"doc-{n % 20}" for n in range(i, i + 1 + i % 3)]} if documents else {}
        yield {"id": f"q{i}", "question": f"What is told of document {i}" + " again" * (i % 5)} | named


def write(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
    return write(tmp_path_factory.mktemp("questions") / "questions.jsonl", lines_of())


@pytest.fixture(scope="module")
def whole(hidden, checkpoint, questions, tmp_path_factory):
    """The answers of a run without a stop."""
    path = tmp_path_factory.mktemp("whole") / "answers.jsonl"
    return path, answer_file(hidden, checkpoint, questions, path, settings=SETTINGS)


@pytest.fixture(scope="module")
def hidden(store_of):
    return store_of("hidden")


def without_seconds(path):
    return [replace(each, seconds=0) for each in read_answers(path)]


def test_answers_equal_those_given_one_by_one(whole, hidden, checkpoint, questions):
    path, report = whole
    decoder = Decoder.load(checkpoint, dtype=torch.float32)
    with Reader(hidden) as reader:
        for asked, found in zip(read_questions(questions, answered=False).asked, read_answers(path), strict=True):
            memory = reader.fetch(asked.doc_ids)
            assert (found.id, found.question, found.documents) == (asked.id, asked.text, asked.doc_ids)
            assert found.answer == decoder.answer(asked.text, memory, max_new_tokens=4)
            assert found.memory_tokens == len(memory.values)
            assert found.text_tokens == sum(size.text for size in reader.sizes(asked.doc_ids))
            assert found.prompt_tokens == len(decoder.prompt_ids(asked.text, memory.lengths))
            assert (found.error, found.missing, found.scores) == (None, (), ())
    assert (report.questions, report.before, report.failed, report.missing) == (20, 0, (), ())
    assert report.documents_from == "questions"
    assert report.memory_tokens == sum(each.memory_tokens for each in read_answers(path))
    assert report.to_dict()["questions_per_second"] > 0


def test_a_finished_file_stays_as_it_is(whole, hidden, checkpoint, questions):
    path, report = whole
    content = path.read_bytes()
    again = answer_file(hidden, checkpoint, questions, path, settings=SETTINGS)
    assert (again.before, again.seconds, again.memory_tokens) == (20, 0, report.memory_tokens)
    assert path.read_bytes() == content


@pytest.mark.parametrize("batches", [1, 6])
def test_a_signal_stops_it_and_the_same_call_continues(whole, hidden, checkpoint, questions, tmp_path, batches):
    path = tmp_path / "answers.jsonl"
    calls = []

    def progress(done, total):
        calls.append((done, total))
        if len(calls) == batches:
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(AnsweringInterruptedError, match=r"answers\.jsonl: Stopped by a signal\. Run the same command"):
        answer_file(hidden, checkpoint, questions, path, settings=SETTINGS, progress=progress)
    assert len(calls) == batches
    assert len(read_answers(path)) < 20
    assert answer_file(hidden, checkpoint, questions, path, settings=SETTINGS).before == calls[-1][0]
    assert sorted(each.name for each in tmp_path.iterdir()) == [
        "answers.jsonl", "answers.jsonl.settings.json",
    ]  # fmt: skip
    assert without_seconds(path) == without_seconds(whole[0])


@pytest.mark.fault(
    "`answer` is stopped or killed at any moment.",
    "The same command continues; each answer is as without a stop, and written once.",
)
def test_a_killed_process_leaves_a_file_that_continues(whole, hidden, checkpoint, questions, tmp_path):
    path = tmp_path / "answers.jsonl"
    code = f"""
import os, signal
from pisco_index.reader.answering import AnswerSettings, answer_file
answer_file({str(hidden)!r}, {str(checkpoint)!r}, {str(questions)!r}, {str(path)!r},
    settings=AnswerSettings(**{asdict(SETTINGS)!r}),
    progress=lambda done, total: done > 12 and (print(done, flush=True), os.kill(os.getpid(), signal.SIGKILL)))
"""
    ended = subprocess.run([sys.executable, "-c", code], timeout=300, check=False, capture_output=True, text=True)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert 8 <= len(read_answers(path)) < 13
    before = answer_file(hidden, checkpoint, questions, path, settings=SETTINGS).before
    assert before == int(ended.stdout) > 12
    assert without_seconds(path) == without_seconds(whole[0])


def test_a_run_names_the_documents_and_what_the_store_lacks_is_reported(whole, hidden, checkpoint, questions, tmp_path):
    lines = [
        f"q{i} Q0 {doc} {n} {9 - n} x\n" for i in range(19) for n, doc in enumerate(["doc-1", f"no-{i % 2}", "doc-2"])
    ]
    (tmp_path / "run").write_text("".join([*lines, "\n", lines[0], "other Q0 d 1 1.5e1 x\n"]))
    path = tmp_path / "answers.jsonl"
    report = answer_file(
        hidden, checkpoint, questions, path, run=tmp_path / "run", settings=replace(SETTINGS, documents=2)
    )
    first, *_, last = read_answers(path)
    assert (first.documents, first.scores, first.missing) == (("doc-1",), (9,), ("no-0",))
    assert first.answer
    assert (last.answer, last.error) == (None, "No document was found.")
    assert (report.failed, report.missing, report.documents_from) == (("q19",), ("no-0", "no-1"), "run")
    assert "lines that repeat a document of their query: 1" in report.warnings[0]


def test_documents_are_searched_for_if_the_questions_name_none(hidden, checkpoint, tmp_path):
    asked = write(tmp_path / "questions.jsonl", lines_of(3, documents=False))
    report = answer_file(hidden, checkpoint, asked, tmp_path / "answers.jsonl", settings=replace(SETTINGS, documents=2))
    found = read_answers(tmp_path / "answers.jsonl")
    with Reader(hidden) as reader:
        for each in found:
            hits = reader.search(each.question, hits=2)
            assert list(zip(each.documents, each.scores, strict=True)) == hits
    assert (report.documents_from, report.failed) == ("search", ())


def test_a_search_replaces_the_documents_of_questions(hidden, checkpoint, questions, tmp_path):
    path = tmp_path / "answers.jsonl"
    settings = replace(SETTINGS, search=True, documents=1)
    assert answer_file(hidden, checkpoint, questions, path, settings=settings).documents_from == "search"
    assert all(len(each.documents) == len(each.scores) == 1 for each in read_answers(path))
    with pytest.raises(InputError, match="Give one of the two"):
        answer_file(hidden, checkpoint, questions, path, run=questions, settings=settings)


def test_memory_that_depends_on_the_question(text_store, checkpoint, questions, tmp_path):
    path = tmp_path / "answers.jsonl"
    answer_file(text_store, checkpoint, questions, path, settings=SETTINGS)
    decoder = Decoder.load(checkpoint, dtype=torch.float32)
    with Reader(text_store) as reader:
        source = open_source(reader, open_checkpoint(checkpoint), "cpu")
        for found in read_answers(path)[:5]:
            (memory,) = source.memories([(found.question, found.documents)])
            assert found.answer == decoder.answer(found.question, memory, max_new_tokens=4)
            assert found.text_tokens == sum(size.text for size in reader.sizes(found.documents))


def test_what_is_refused_before_the_first_answer(hidden, checkpoint, questions, whole, tmp_path):
    path = tmp_path / "answers.jsonl"
    with pytest.raises(QuestionsError, match="No such file"):
        answer_file(hidden, checkpoint, tmp_path / "none", path)
    (tmp_path / "run").write_text("x1 Q0 doc-1 1 1 x\n")
    with pytest.raises(QuestionsError, match="for none of the 20 questions, but for 'x1'"):
        answer_file(hidden, checkpoint, questions, path, run=tmp_path / "run")
    other = write(tmp_path / "others.jsonl", lines_of(5))
    with pytest.raises(InputError, match=r"stands where|other settings"):
        answer_file(hidden, checkpoint, other, whole[0], settings=SETTINGS)
    with pytest.raises(InputError, match="other settings: max_new_tokens 4, not 5"):
        answer_file(hidden, checkpoint, questions, whole[0], settings=replace(SETTINGS, max_new_tokens=5))
    assert not path.exists()


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "generation_config.json"])
def test_another_base_decoder_does_not_continue_a_file(hidden, checkpoint, tmp_path, name):
    base, path = shutil.copytree(checkpoint / "base_decoder", tmp_path / "base"), tmp_path / "answers.jsonl"
    opened = open_checkpoint(checkpoint, decoder_base=str(base))
    asked = write(tmp_path / "questions.jsonl", lines_of(2))
    answer_file(hidden, opened, asked, path, settings=SETTINGS)
    assert answer_file(hidden, opened, asked, path, settings=SETTINGS).before == 2
    content = (base / name).read_bytes() if (base / name).exists() else b"{}"
    # Weights of the same shapes have files of the same sizes.
    (base / name).write_bytes(content[:-1] + b"\x01" if name == "model.safetensors" else content + b" ")
    with pytest.raises(InputError, match="other settings: decoder_base_digest"):
        answer_file(hidden, opened, asked, path, settings=SETTINGS)


def test_questions_that_changed_since_the_answers_were_begun_are_named(hidden, checkpoint, whole, tmp_path):
    path, changed = tmp_path / "answers.jsonl", tmp_path / "questions.jsonl"
    path.write_bytes(b"".join(whole[0].read_bytes().splitlines(keepends=True)[:9]))
    shutil.copy(settings_path(whole[0]), settings_path(path))
    begun_with = json.loads(settings_path(path).read_bytes())["questions_file"]

    def refusal(lines):
        with pytest.raises(InputError) as caught:
            answer_file(hidden, checkpoint, write(changed, lines), path, settings=SETTINGS)
        message = str(caught.value)
        assert message.endswith("name another file of answers (--out), or begin this one anew with --overwrite.")
        return message

    lines = list(lines_of())
    lines[3] |= {"question": "Another one?"}
    assert (
        f"{path}: the questions in {changed} are not those that this file was begun with (those in {begun_with}): "
        "question 'q3' was 'What is told of document 3 again again again', and is 'Another one?'. "
    ) in refusal(lines)
    assert "the answered ones are the same, but later ones" in refusal([*lines_of(), {"id": "new", "question": "?"}])
    swapped = list(lines_of())
    swapped[4:6] = swapped[5], swapped[4]
    message = refusal(swapped)
    assert f"{path}, line 5: the answer to question 'q4' stands where 'q5' belongs: {changed} has changed" in message


@pytest.mark.parametrize("beside", ["", ".settings.json", ".part"])
def test_questions_and_run_are_not_overwritten(hidden, checkpoint, tmp_path, beside):
    out = tmp_path / "q"
    read = write(tmp_path / f"q{beside}", lines_of(2))
    content = read.read_bytes()
    with pytest.raises(InputError, match="would be overwritten"):
        answer_file(hidden, checkpoint, read, out, settings=SETTINGS, overwrite=True)
    other = write(tmp_path / "others", lines_of(2))
    with pytest.raises(InputError, match="would be overwritten"):
        answer_file(hidden, checkpoint, other, out, run=read, settings=SETTINGS, overwrite=True)
    assert read.read_bytes() == content


def test_a_decoder_that_does_not_fit_loses_no_answers(whole, hidden, checkpoint, questions, tmp_path, monkeypatch):
    path = tmp_path / "answers.jsonl"
    for each in (path, settings_path(path)):
        shutil.copy(whole[0].with_name(each.name), each)
    monkeypatch.setattr(Decoder, "generate", lambda *_, **__: (_ for _ in ()).throw(MemoryError("CUDA")))
    with pytest.raises(MemoryError):
        answer_file(hidden, checkpoint, questions, path, settings=SETTINGS, overwrite=True)
    assert path.read_bytes() == whole[0].read_bytes()
    assert answer_file(hidden, checkpoint, questions, path, settings=SETTINGS).before == 20


def test_what_is_no_regular_file_is_refused(hidden, checkpoint, questions, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="not a regular file"):
        answer_file(hidden, checkpoint, questions, tmp_path / "pipe", settings=SETTINGS)
    with pytest.raises(QuestionsError, match="not a regular file"):
        answer_file(hidden, checkpoint, tmp_path / "pipe", tmp_path / "answers", settings=SETTINGS)


def test_a_moved_store_continues_and_a_version_that_is_gone_is_named(whole, hidden, checkpoint, questions, tmp_path):
    path = tmp_path / "answers.jsonl"
    shutil.copytree(hidden, tmp_path / "moved")
    lines = whole[0].read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:9]))
    shutil.copy(settings_path(whole[0]), settings_path(path))
    assert answer_file(tmp_path / "moved", checkpoint, questions, path, settings=SETTINGS).before == 9
    assert without_seconds(path) == without_seconds(whole[0])
    recorded = json.loads(settings_path(path).read_bytes())
    assert (recorded["token_budget"], recorded["pisco_index"]) == (400, metadata.version("pisco-index"))
    settings_path(path).write_text(json.dumps(recorded | {"store_version": 99}))
    with pytest.raises(StoreError, match=r"answers\.jsonl: the file was begun with version 99 .*--overwrite"):
        answer_file(tmp_path / "moved", checkpoint, questions, path, settings=SETTINGS)


def test_a_store_of_another_checkpoint_is_refused(hidden, questions, tmp_path, other_checkpoint):
    with pytest.raises(FingerprintMismatchError, match="another checkpoint"):
        answer_file(hidden, other_checkpoint, questions, tmp_path / "answers.jsonl")


@pytest.fixture(scope="module")
def other_checkpoint(tmp_path_factory):
    return new_tiny_checkpoint(tmp_path_factory.mktemp("other") / "tiny", rate=8, seed=7).path
