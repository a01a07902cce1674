"""Build an index of invented articles and answer questions about them from stored memory alone.

    make demo
    python -m pisco_index.examples.demo [FOLDER]      (default: demo-index/, replaced each time)

Nothing is downloaded. The small checkpoint in examples/tinypedia-checkpoint was trained on Tinypedia, an encyclopedia
of an invented world. The articles here belong to its held-out split, and training never named their people, places
and works. So every right answer was read from the memory in the store. The exit code is 1 if the store's memory
differs from the compressor's, or answers no more questions than no memory does.
"""

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from pisco_index import Compressor, Memory, Reader, load_config, open_checkpoint

CHECKPOINT = Path(os.path.relpath(Path(__file__).parent / "tinypedia-checkpoint"))
COMMAND = Path(sys.executable).with_name("pisco-index")
# Files and folders of an earlier run, which the next one removes.
CONTENTS = {"encyclopedia", "store", "compared.jsonl", "compared.jsonl.part", "run.trec"}
CONTENTS |= {"answers.jsonl", "answers.jsonl.settings.json", "answers.jsonl.part", ".answers.jsonl.lock"}
ARTICLES = 60
# Number of answers that are printed beside the truth.
SHOWN = 12
MODEL = ("--checkpoint", CHECKPOINT)
LENGTH = ("--max-new-tokens", 16)


def main(folder: Path) -> int:
    """Run the demonstration in a folder, and return the exit code."""
    make_room(folder)
    encyclopedia, store, answers = folder / "encyclopedia", folder / "store", folder / "answers.jsonl"

    say(f"Write {ARTICLES} articles about people, places and works that are new to the checkpoint, and questions.")
    pisco_index("train", "tinypedia", encyclopedia, "--split", "held-out", "--articles", ARTICLES)
    articles, questions = (read_lines(encyclopedia / name) for name in ("corpus.jsonl", "questions.jsonl"))
    print(f"\n{articles[0]['text']}")

    say("Compress them into a store.")
    corpus = encyclopedia / "corpus.jsonl"
    build = ("build", corpus, "--preset", "tinypedia", "--checkpoint", CHECKPOINT, "--out", store)
    pisco_index(*build)
    say("Run the same command again. Everything is done; after a stop, it would resume.")
    pisco_index(*build)
    say("Show what the store holds.")
    pisco_index("info", store)
    say("Fetch the memory of a document by its id.")
    pisco_index("get", store, articles[0]["_id"])
    say("Answer a question from the memory of a document. The decoder never sees the document's text.")
    first = questions[0]
    pisco_index("ask", store, first["question"], "--doc", first["doc_ids"][0], *MODEL)
    say("Compare the answers to all questions: without the article, from its text, and from its memory in the store.")
    compared = folder / "compared.jsonl"
    asked = ("--questions", encyclopedia / "questions.jsonl")
    only = ("--codec", "int8", "--stage", "hidden", "--answers", compared)
    pisco_index("eval", store, *asked, *MODEL, *LENGTH, *only)
    right, without = show(read_lines(compared))

    say("Find the documents too. First for one question: the store searches their texts.")
    pisco_index("ask", store, first["question"], "--hits", 1, "--show-text", *MODEL)
    say("Find the documents of all questions, and write them as a TREC run.")
    run = folder / "run.trec"
    pisco_index("retrieve", store, *asked, "--out", run, "--hits", 5)
    say("Answer all questions from the best document that the search finds, and score the answers and the search.")
    pisco_index("answer", store, *asked, "--run", run, "--documents", 1, "--out", answers, *MODEL, *LENGTH)
    scores = json.loads(pisco_index("eval", answers, *asked, "--run", run, "--json"))
    return check(store, articles, right, without, scores)


def show(answers: list[dict]) -> tuple[float, float]:
    """Print some answers from memory beside the truth, and return the shares of right ones, with memory and without."""
    stored, none = ([a for a in answers if a["condition"] == name] for name in ("stored", "none"))
    print()
    for answer in stored[:SHOWN]:
        mark = "yes" if answer["exact_match"] else "NO "
        print(f"{mark}  {answer['question']}  {answer['answer']}  (true: {answer['references'][0]})")
    right, without = (sum(a["exact_match"] for a in each) / len(each) for each in (stored, none))
    print(f"\nexactly right of {len(stored)}: {right:.1%} from memory, {without:.1%} without it")
    return right, without


def check(store: Path, articles: list[dict], right: float, without: float, scores: dict) -> int:
    """Print whether the store's memory is the compressor's and helps to answer, and return the exit code.

    Args:
        store: the store.
        articles: the articles in it.
        right: share of questions that are answered right from the memory of the right article.
        without: share of questions that are answered right without memory.
        scores: scores of the answers from the documents that the search finds.
    """
    computed = compress(articles)
    with Reader(store) as reader:
        stored = reader.fetch(computed.doc_ids)
    exact = computed.values.float()
    error = float(((stored.values - exact).square() / exact.var(dim=0)).mean())
    checks = {
        f"memory of {len(computed)} documents, {len(exact)} vectors: error below 0.01% of the variance": error < 1e-4,
        "memory answers more questions than none": right > without,
        f"the best document of the search is the right one for {scores['retrieval']['R@1']:.1%} of questions": (
            scores["retrieval"]["R@1"] > 0.99
        ),
        f"{scores['exact_match']:.1%} are answered right from it": scores["exact_match"] > right - 0.01,
    }
    for claim, holds in checks.items():
        print(f"{'yes' if holds else 'NO '}  {claim}")
    return 0 if all(checks.values()) else 1


def compress(articles: list[dict]) -> Memory:
    """Return the articles' memory, computed without a store: tokenize, then compress."""
    checkpoint, compression = open_checkpoint(CHECKPOINT), load_config("tinypedia").compression
    texts = [compression.input_text(article["text"], article["title"]) for article in articles]
    headings = [compression.repeated_heading(article["title"]) for article in articles]
    tokenized = list(checkpoint.passage_tokenizer(compression).tokenize(texts, headings))
    passages = [passage for document in tokenized for passage in document.passages]
    memory = Compressor.load(checkpoint).compress(passages, stage="hidden")
    lengths = tuple(document.n_mem for document in tokenized)
    return Memory(memory.values, lengths, memory.stage, memory.connector, tuple(a["_id"] for a in articles))


def make_room(folder: Path) -> None:
    """Remove the results of an earlier run, and exit if the folder holds anything else."""
    if not folder.exists():
        return
    if others := {path.name for path in folder.iterdir()} - CONTENTS:
        sys.exit(f"{folder} holds {sorted(others)[0]}, which no demonstration wrote. Name another folder.")
    shutil.rmtree(folder)


def pisco_index(*arguments: object) -> str:
    """Print a command as a user would type it, run it, and print and return its output."""
    words = [str(argument) for argument in arguments]
    print(f"$ {shlex.join(['pisco-index', *words])}", flush=True)
    # Only stdout goes through a pipe, so that progress and errors appear at once.
    run = subprocess.run([COMMAND, *words], stdout=subprocess.PIPE, text=True, check=False)  # noqa: S603
    print(run.stdout, end="", flush=True)
    if run.returncode:
        sys.exit(run.returncode)
    return run.stdout


def read_lines(path: Path) -> list[dict]:
    """Return the records of a JSON lines file."""
    return [json.loads(line) for line in path.read_text("utf-8").split("\n") if line]


def say(text: str) -> None:
    """Print a heading for the next step."""
    print(f"\n# {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1] if len(sys.argv) > 1 else "demo-index")))
