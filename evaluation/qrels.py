"""Judgements of relevance: the documents that a retriever should have found for each query."""

from pathlib import Path

from ..errors import QuestionsError
from ..reader.questions.lines import TextLines

# trec_eval counts documents in an array that is as long as the largest relevance.
_MOST = 1_000_000

Qrels = dict[str, dict[str, int]]
"""Relevance of each judged document, by query; 0 for one that is not relevant."""


def read_qrels(path: str | Path) -> Qrels:
    """Read judgements: ``qid iteration docid relevance`` (TREC), or ``query-id corpus-id score`` (BEIR, with a header).

    The file may be compressed, or UTF-16 with a byte order mark.

    Raises:
        QuestionsError: naming file and line, if the file cannot be read or holds something else.
    """
    found: Qrels = {}
    for place, (number, line) in enumerate(TextLines(path)):
        # Fields of BEIR's files are separated by tabs, so that ids may have blanks in them.
        fields = cut if len(cut := line.split("\t")) == 3 else line.split()
        relevance = _number(fields[-1])
        if place == 0 and len(fields) == 3 and relevance is None:
            # The header.
            continue
        if len(fields) not in (3, 4) or relevance is None or not relevance.is_integer() or abs(relevance) > _MOST:
            raise QuestionsError(
                f"{path}, line {number}: a line of judgements has the fields qid iteration docid relevance (TREC), or "
                "query-id corpus-id score between tabs (BEIR). The last one is an integer, from "
                f"{-_MOST:,} to {_MOST:,}. Correct the line."
            )
        found.setdefault(fields[0], {})[fields[-2]] = int(relevance)
    if not found:
        raise QuestionsError(f"{path}: the file holds no judgements.")
    return found


def _number(field: str) -> float | None:
    try:
        return float(field)
    except ValueError:
        return None
