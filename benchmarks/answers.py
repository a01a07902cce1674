"""What memory answers: the shipped checkpoint on held-out Tinypedia, beside text, beside nothing, and for each codec.

Articles whose people, places and works the training never named are compressed into a store; their questions are
answered from the one article that holds the answer (k = 1) and from that one among five (k = 5).

    python benchmarks/answers.py [--articles 80] [--checkpoint examples/tinypedia-checkpoint] [--json]
"""

import argparse
import json
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

from pisco_index import Evaluation, build, evaluate, load_config
from pisco_index.evaluation.results import EvaluationRow
from pisco_index.training.tinypedia import write

CHECKPOINT = Path(__file__).parents[1] / "examples" / "tinypedia-checkpoint"
NEW_TOKENS = 16
COLUMNS = "{:10} {:10} {:6} {:>7} {:>7} {:>7} {:>7} {:>7} {:>9}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--articles", type=int, default=80)
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT)
    parser.add_argument("--seed", type=int, default=1, help="of the articles")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    args = parser.parse_args()

    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write(folder, "held-out", count=args.articles, seed=args.seed)
        store = folder / "store"
        build([folder / "corpus.jsonl"], args.checkpoint, store, load_config("tinypedia", {"store": {"codec": "bf16"}}))
        questions, options = folder / "questions.jsonl", {"max_new_tokens": NEW_TOKENS, "batch_size": 64}
        one = evaluate(store, args.checkpoint, questions, **options)
        # Only what the first evaluation did not say: memory and text of five.
        five = evaluate(
            store, args.checkpoint, questions, run=folder / "run.trec", codecs=["bf16"], stage="hidden", **options
        )
    result = {
        "em_k1": stored(one).exact_match,
        "em_k5": stored(five).exact_match,
        "em_none": row_of(one, "none").exact_match,
        "em_text": row_of(one, "text").exact_match,
        "em_text_k5": row_of(five, "text").exact_match,
        "questions": one.questions,
        "articles": one.documents,
        "seconds": round(time.perf_counter() - began, 1),
        "rows_k1": [asdict(row) for row in one.rows],
        "rows_k5": [asdict(row) for row in five.rows],
    }
    for k, evaluation in ((1, one), (5, five)):
        print(f"k = {k}: {evaluation.questions} questions about {evaluation.documents} articles")
        print(COLUMNS.format("condition", "stage", "codec", "B/doc", "match", "EM", "F1", "NLL", "KL"))
        for row in evaluation.rows:
            print(line(row))
        print()
    print(f"{result['seconds']} s")
    if args.json:
        print(json.dumps(result))


def row_of(evaluation: Evaluation, condition: str) -> EvaluationRow:
    return next(row for row in evaluation.rows if row.condition == condition)


def stored(evaluation: Evaluation) -> EvaluationRow:
    return row_of(evaluation, "stored")


def line(row: EvaluationRow) -> str:
    size = "-" if row.bytes_per_document is None else f"{row.bytes_per_document:.0f}"
    shares = (f"{share:.1%}" for share in (row.match, row.exact_match, row.f1))
    return COLUMNS.format(
        row.condition, row.stage or "-", row.codec or "-", size, *shares, f"{row.nll:.3f}", f"{row.kl:.2g}"
    )


if __name__ == "__main__":
    main()
