"""The files of the encyclopedia: a corpus with questions and a retrieval run, and conversations."""

import json
import random
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

from ...errors import TrainingError
from ...places import local_path
from .article import Article, Kind, articles
from .conversation import Conversation
from .pen import Pen
from .vocabulary import vocabulary
from .words import Split


def write(folder: Path | str, split: Split, *, count: int, seed: int = 0, documents: int = 5) -> None:
    """Write the first articles of a split as a corpus, with questions and a retrieval run for them.

    ``corpus.jsonl`` holds ``{"_id", "title", "text"}``. ``questions.jsonl`` holds ``{"id", "question", "answers",
    "doc_ids"}``, where ``doc_ids`` names the one article that answers. ``run.trec`` ranks articles for each question:
    the one that answers at a random rank, and others, most of them of its kind.

    Args:
        folder: folder to write into; it is created if it does not exist.
        split: split of the articles.
        count: number of articles.
        seed: seed of all draws.
        documents: number of articles that the run ranks for each question.

    Raises:
        TrainingError: if there are fewer articles than the run ranks for a question.
    """
    if count < documents:
        raise TrainingError(f"{documents} documents for each question need as many articles, not {count}: raise count.")
    folder = local_path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    corpus = list(islice(articles(split, seed=seed), count))
    rng = Pen(split, f"run {seed}", vocabulary()).rng
    alike: dict[Kind, list[Article]] = defaultdict(list)
    for article in corpus:
        alike[article.kind].append(article)

    with ExitStack() as files:
        texts, asked, run = (
            files.enter_context(_replacing(folder / name)) for name in ("corpus.jsonl", "questions.jsonl", "run.trec")
        )
        for article in corpus:
            texts.write(_line({"_id": article.doc_id, "title": article.title, "text": article.text}))
            for fact in article.facts:
                qid = f"{article.doc_id}-{fact.relation}"
                record = {"id": qid, "question": fact.question, "answers": [fact.answer], "doc_ids": [article.doc_id]}
                asked.write(_line(record))
                for rank, doc_id in enumerate(_ranked(article, corpus, alike[article.kind], documents, rng), 1):
                    run.write(f"{qid} Q0 {doc_id} {rank} {documents - rank + 1} tinypedia\n")


def _ranked(gold: Article, corpus: list[Article], alike: list[Article], count: int, rng: random.Random) -> list[str]:
    """Return ``count`` ids in random order: that of ``gold`` and random others, four in five of them of its kind."""
    ranked = [gold.doc_id]
    same_kind = len(alike)
    while len(ranked) < count:
        pool = alike if same_kind > count and rng.random() < 0.8 else corpus
        other = rng.choice(pool).doc_id
        if other not in ranked:
            ranked.append(other)
    rng.shuffle(ranked)
    return ranked


def write_conversations(path: Path | str, drawn: Iterable[Conversation]) -> None:
    """Write conversations as JSON lines of ``documents`` (title, text) and ``turns`` (question, answer)."""
    with _replacing(local_path(path)) as file:
        for conversation in drawn:
            read = [{"title": article.title, "text": article.text} for article in conversation.documents]
            turns = [{"question": fact.question, "answer": fact.answer} for fact in conversation.turns]
            file.write(_line({"documents": read, "turns": turns}))


def _line(record: dict[str, Any]) -> str:
    return json.dumps(record, ensure_ascii=False) + "\n"


@contextmanager
def _replacing(path: Path) -> Iterator[TextIO]:
    """Open a draft beside a file, and put it in the file's place once it is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.draft")
    try:
        with draft.open("w", encoding="utf-8") as file:
            yield file
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
