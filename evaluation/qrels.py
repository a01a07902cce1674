"""Judgements of relevance: the documents that a retriever should have found for each query."""

from pathlib import Path

from ..errors import QuestionsError
from ..reader.questions.lines import read_lines

Qrels = dict[str, dict[str, int]]
"""Relevance of each judged document, by query; 0 for one that is not relevant."""


def read_qrels(path: str | Path) -> Qrels:
    """Read judgements: ``qid iteration docid relevance`` (TREC), or ``query-id corpus-id score`` (BEIR, with a header).

    The file may be compressed, or UTF-16 with a byte order mark.

    Raises:
        QuestionsError: naming file and line, if the file cannot be read or holds something else.
    """
    found: Qrels = {}
    for number, line in read_lines(path):
        # Fields of BEIR's files are separated by tabs, so that ids may have blanks in them.
        fields = cut if len(cut := line.split("\t")) == 3 else line.split()
        try:
            if len(fields) not in (3, 4):
                raise ValueError
            relevance = int(float(fields[-1]))
        except (ValueError, OverflowError):
            if not found and len(fields) == 3:
                # The header.
                continue
            raise QuestionsError(
                f"{path}, line {number}: a line of judgements has the fields qid iteration docid relevance (TREC), or "
                "query-id corpus-id score between tabs (BEIR). The last one is a number. Correct the line."
            ) from None
        found.setdefault(fields[0], {})[fields[-2]] = relevance
    if not found:
        raise QuestionsError(f"{path}: the file holds no judgements.")
    return found
