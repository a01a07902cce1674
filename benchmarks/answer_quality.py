"""Measure how well memory answers questions: the shipped checkpoint on held-out Tinypedia, with each codec.

The articles name people, places and works that training never named. They are compressed into a store. Each question
is answered from the one article that holds the answer (k = 1), and from that article among five (k = 5). For
comparison it is answered from the articles' text, and without any article.

    python benchmarks/answer_quality.py --articles 80
"""

import json
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from measure import CHECKPOINT, options, seconds

from pisco_index import build, evaluate, load_config
from pisco_index.evaluation.results import Evaluation, EvaluationRow
from pisco_index.store import CODECS
from pisco_index.training.tinypedia import write

# Longer than any answer in Tinypedia.
NEW_TOKENS = 16
COLUMNS = "{:10} {:10} {:6} {:>7} {:>7} {:>7} {:>7} {:>7} {:>9}"


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--articles", type=int, default=80, help="number of articles")
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT, help="checkpoint to build and answer with")
    parser.add_argument("--seed", type=int, default=1, help="seed that the articles are drawn with")
    args = parser.parse_args()

    evaluations: dict[int, Evaluation] = {}
    took = round(seconds(lambda: evaluations.update(run(args.checkpoint, args.articles, args.seed))), 1)
    for k, evaluation in evaluations.items():
        show(k, evaluation)
    print(f"{took} s")
    if args.json:
        print(json.dumps(summary(evaluations[1], evaluations[5], took)))


def run(checkpoint: Path, articles: int, seed: int) -> dict[int, Evaluation]:
    """Return the evaluations with one document and with five documents in each prompt, by number of documents."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write(folder, "held-out", count=articles, seed=seed)
        store = folder / "store"
        build([folder / "corpus.jsonl"], checkpoint, store, load_config("tinypedia", {"store": {"codec": "bf16"}}))
        questions, settings = folder / "questions.jsonl", {"max_new_tokens": NEW_TOKENS, "batch_size": 64}
        # By default the codecs that are fitted to the decoder are left out.
        names = [codec.name for codec in CODECS]
        one = evaluate(store, checkpoint, questions, codecs=names, stage="hidden", **settings)
        # The first evaluation compares the codecs already.
        five = evaluate(
            store, checkpoint, questions, run=folder / "run.trec", codecs=["bf16"], stage="hidden", **settings
        )
    return {1: one, 5: five}


def summary(one: Evaluation, five: Evaluation, took: float) -> dict[str, Any]:
    return {
        "em_k1": row_of(one, "stored").exact_match,
        "em_k5": row_of(five, "stored").exact_match,
        "em_none": row_of(one, "none").exact_match,
        "em_text": row_of(one, "text").exact_match,
        "em_text_k5": row_of(five, "text").exact_match,
        "questions": one.questions,
        "articles": one.documents,
        "seconds": took,
        "rows_k1": [asdict(row) for row in one.rows],
        "rows_k5": [asdict(row) for row in five.rows],
    }


def row_of(evaluation: Evaluation, condition: str) -> EvaluationRow:
    return next(row for row in evaluation.rows if row.condition == condition)


def show(k: int, evaluation: Evaluation) -> None:
    print(f"k = {k}: {evaluation.questions} questions about {evaluation.documents} articles")
    print(COLUMNS.format("condition", "stage", "codec", "B/doc", "match", "EM", "F1", "NLL", "KL"))
    for row in evaluation.rows:
        print(line(row))
    print()


def line(row: EvaluationRow) -> str:
    size = "-" if row.bytes_per_document is None else f"{row.bytes_per_document:.0f}"
    shares = (f"{share:.1%}" for share in (row.match, row.exact_match, row.f1))
    return COLUMNS.format(
        row.condition, row.stage or "-", row.codec or "-", size, *shares, f"{row.nll:.3f}", f"{row.kl:.2g}"
    )


if __name__ == "__main__":
    main()
