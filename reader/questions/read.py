"""Read a file of questions, and take their documents from the file, a run or a retriever."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...configs.names import DOCUMENTS
from ...errors import QuestionsError, some
from ..retriever import Retriever
from .question import Question, Questions
from .records import ANSWER_FIELDS, DOCUMENT_FIELD, ID_FIELDS, TEXT_FIELDS, Record, json_list, read_records
from .runs import RunFile


def read_questions(
    path: str | Path,
    *,
    run: str | Path | None = None,
    documents: int | None = None,
    answered: bool = True,
    documented: bool = True,
) -> Questions:
    """Read questions and the documents to answer them from.

    Args:
        path: file of JSON lines, a JSON array, or text with tabs, with fields as docs/evaluation.md lists them. Other
            fields are ignored. It may be compressed, or UTF-16 with a byte order mark.
        run: run to take the documents from in place of the file's; its queries are the questions' ids.
        documents: number of documents to take of each question, best first; by default 5 of a run, or all that the
            file names.
        answered: True to require an answer to each question; otherwise a question without one gets an empty tuple.
        documented: True to require documents of each question; otherwise a question without one gets an empty tuple.

    Raises:
        QuestionsError: naming file, line, id and what is wrong there, or the questions that the run lacks.
    """
    if documents is not None and documents < 1:
        raise ValueError(f"documents must be at least 1, not {documents}")
    # The run is read first: the questions need no documents of their own where there is one.
    hits = documents or DOCUMENTS
    retriever = None if run is None else RunFile(run, depth=hits)
    read = _read(path, answered, documented and retriever is None)
    if retriever is None:
        return replace(read, asked=tuple(replace(each, doc_ids=each.doc_ids[:documents]) for each in read.asked))
    asked = find_documents(read.asked, retriever, hits=hits)
    if documented and (absent := [question.id for question in asked if not question.doc_ids]):
        raise QuestionsError(
            f"{run}: the run has no documents for {len(absent)} of the {len(asked)} questions in {path}: "
            f"{some(absent)}. Its first column must hold the questions' ids."
        )
    ignored = len(retriever.queries - {question.id for question in asked})
    return replace(read, asked=asked, ignored_queries=ignored, warnings=retriever.warnings)


def find_documents(questions: Sequence[Question], retriever: Retriever, *, hits: int) -> tuple[Question, ...]:
    """Return the questions, each with the ids of the documents that a retriever finds for it.

    Args:
        questions: the questions; the documents that they have are replaced.
        retriever: retriever that finds the documents.
        hits: largest number of documents of a question.
    """
    found = retriever.retrieve({question.id: question.text for question in questions}, hits=hits)
    return tuple(replace(each, doc_ids=tuple(hit.doc_id for hit in found[each.id])) for each in questions)


def _read(path: str | Path, answered: bool, documented: bool) -> Questions:
    asked: dict[str, Question] = {}
    places: dict[str, str] = {}
    records = read_records(path)
    fields: list[str] = []
    for record in map(_with_plain_names, records.items):
        question = _question(record, answered, documented)
        if question.id in asked:
            raise QuestionsError(
                f"{record.where}: the id {question.id!r} is already used in {places[question.id]}. "
                "Give each question its own id."
            )
        asked[question.id], places[question.id] = question, record.where.removeprefix(f"{path}, ")
        groups = ID_FIELDS, TEXT_FIELDS, ANSWER_FIELDS, (DOCUMENT_FIELD,)
        fields = fields or [name for group in groups if (name := _first(group, record.values))]
    if not asked:
        raise QuestionsError(f"{path}: the file holds no questions. Write one JSON object per line.")
    return Questions(tuple(asked.values()), form=f"{records.kind}: {', '.join(fields)}")


def _with_plain_names(record: Record) -> Record:
    """Return a record whose fields are found by names without capitals: TriviaQA and spreadsheets have Question."""
    if not isinstance(record.values, dict):
        return record
    return replace(record, values={name.lower(): value for name, value in record.values.items()} | record.values)


def _question(record: Record, answered: bool, documented: bool) -> Question:
    values, where = record.values, record.where
    if not isinstance(values, dict):
        raise QuestionsError(f"{where}: a question is a JSON object, not {_kind(values)}.")
    id_field = _first(ID_FIELDS, values)
    question_id = str(record.number) if id_field is None else _plain(values[id_field])
    if not question_id:
        raise QuestionsError(
            f"{where}: {id_field} must be a string or an integer, not {_kind(values[id_field])}. Correct the line."
        )
    where += f", id {question_id!r}" if id_field else ""
    if (text_field := _first(TEXT_FIELDS, values)) is None:
        found = list({name.lower(): name for name in values}.values())
        raise QuestionsError(
            f"{where}: no field holds the question; found {some(found) or 'none'}. Name it {' or '.join(TEXT_FIELDS)}."
        )
    text = values[text_field]
    if not isinstance(text, str) or not text.strip():
        raise QuestionsError(
            f"{where}: {text_field} must be a string, the question's text, not {_kind(text)}. Correct the line."
        )
    return Question(question_id, text, _answers(values, where, answered), _documents(values, where, documented))


def _answers(values: dict[str, Any], where: str, required: bool) -> tuple[str, ...]:
    field = _first(ANSWER_FIELDS, values)
    found = () if field is None else _references(values[field], f"{where}: {field}")
    if found and field == "answer":
        # MuSiQue
        found = tuple(dict.fromkeys((*found, *_references(values.get("answer_aliases"), f"{where}: answer_aliases"))))
    if not found and required:
        problem = "the question has no reference answer" if field is None else f"{field} holds no reference answer"
        raise QuestionsError(f"{where}: {problem}. Add answers (a list) or answer (a text).")
    return found


def _references(value: Any, place: str) -> tuple[str, ...]:
    """Return the texts of reference answers, however data sets write them."""
    match value:
        case None:
            return ()
        case {"text": list(texts)}:  # SQuAD
            return _references(texts, place)
        # TriviaQA
        case {"value": first, "aliases": list(aliases)} | {"Value": first, "Aliases": list(aliases)}:
            return _references([first, *aliases], place)
        case str() if (listed := json_list(value)) and all(isinstance(each, str) for each in listed):  # PopQA
            return _references(listed, place)
        case list():
            # The outputs of KILT, of which some have a provenance and no answer; or SQuAD's answers as published.
            held = [each.get("answer", each.get("text")) if isinstance(each, dict) else each for each in value]
            found = [_plain(each) for each in held if each is not None]
            if not all(found):
                wrong = next(each for each in held if each is not None and not _plain(each))
                raise QuestionsError(f"{place} must hold strings or numbers, not {_kind(wrong)}. Correct the line.")
            return tuple(dict.fromkeys(found))
    if not (text := _plain(value)):
        raise QuestionsError(
            f"{place} must be a string, a number, a list of these, or an object with text (SQuAD) or with value and "
            f"aliases (TriviaQA), not {_kind(value)}. Correct the line."
        )
    return (text,)


def _documents(values: dict[str, Any], where: str, required: bool) -> tuple[str, ...]:
    ids = values.get(DOCUMENT_FIELD)
    if not ids and not required:
        return ()
    if DOCUMENT_FIELD not in values:
        raise QuestionsError(f"{where}: the question has no documents. Add doc_ids (a list), or give a run (--run).")
    if not isinstance(ids, list) or not ids:
        raise QuestionsError(f"{where}: doc_ids must be a list of ids, at least one, not {_kind(ids)}.")
    found = tuple(map(_plain, ids))
    if not all(found):
        wrong = ids[found.index("")]
        raise QuestionsError(f"{where}: doc_ids must hold strings or integers, not {_kind(wrong)}. Correct the line.")
    return found


def _first(fields: Sequence[str], values: Any) -> str | None:
    """Return the first of some fields that a record has, one with a value if there is any."""
    held = [name for name in fields if name in values]
    return next((name for name in held if values[name] is not None), held[0] if held else None)


def _plain(value: Any) -> str:
    """Return a string, or a number as text; an empty text for other values and blank strings."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return ""
    if isinstance(value, str):
        return value if value.strip() else ""
    # pandas writes integers as floats where a value of the column is missing.
    return str(int(value)) if isinstance(value, int) or value.is_integer() else str(value)


def _kind(value: Any) -> str:
    """Return the words for a JSON value in an error message."""
    if value is None:
        return "null or missing"
    if isinstance(value, str | list | dict):
        kind = {str: "a string", list: "a list", dict: "an object"}[type(value)]
        is_empty = not value or (isinstance(value, str) and not value.strip())
        return f"an empty {kind.split()[1]}" if is_empty else kind
    return repr(value)
