"""Build an index of invented articles and answer questions about them from stored memory alone.

    make demo
    python examples/demo.py [FOLDER]      (default: demo-index/, made anew each time)

Nothing is downloaded. The checkpoint, examples/tinypedia-checkpoint, is a small one that was trained on Tinypedia, an
encyclopedia of an invented world; the articles here are of its held-out part, whose people, places and works the
training never named. So whatever is answered rightly was read from the memory in the store. The exit code is 1 if the
store's memory is not the compressor's, or answers no better than no memory.
"""

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from pisco_index import Checkpoint, Compressor, Memory, PassageTokenizer, Reader, load_config

CHECKPOINT = Path(os.path.relpath(Path(__file__).parent / "tinypedia-checkpoint"))
COMMAND = Path(sys.executable).with_name("pisco-index")
CONTENTS = {"encyclopedia", "store", "answers.jsonl"}
ARTICLES = 60
SHOWN = 12
NEW_TOKENS = 16


def main(folder: Path) -> int:
    """Run the demonstration in a folder; returns the exit code."""
    make_room(folder)
    encyclopedia, store, answers = folder / "encyclopedia", folder / "store", folder / "answers.jsonl"

    say(f"{ARTICLES} articles about people, places and works that the checkpoint was not trained on, and questions.")
    pisco_index("train", "tinypedia", encyclopedia, "--split", "held-out", "--articles", ARTICLES)
    articles, questions = (read_lines(encyclopedia / name) for name in ("corpus.jsonl", "questions.jsonl"))
    print(f"\n{articles[0]['text']}")

    say("Compress them into a store.")
    build = (
        "build",
        encyclopedia / "corpus.jsonl",
        "--preset",
        "tinypedia",
        "--checkpoint",
        CHECKPOINT,
        "--out",
        store,
    )
    pisco_index(*build)
    say("The same command again: it finds that everything is done. After a stop it would go on from there.")
    pisco_index(*build)
    say("What the store holds.")
    pisco_index("info", store)
    say("The memory of a document, by id.")
    pisco_index("get", store, articles[0]["_id"])
    say("An answer from stored memory: the decoder never sees the article's text.")
    first = questions[0]
    pisco_index("ask", store, first["question"], "--doc", first["doc_ids"][0], "--checkpoint", CHECKPOINT)
    say("All questions: from no article, from the article's text, and from its memory in the store.")
    length = ("--max-new-tokens", NEW_TOKENS)
    evaluate = ("eval", store, "--questions", encyclopedia / "questions.jsonl", "--checkpoint", CHECKPOINT, *length)
    only = ("--codec", "int8", "--stage", "hidden", "--answers", answers)
    pisco_index(*evaluate, *only)
    right, alone = show(read_lines(answers))
    return check(store, articles, right, alone)


def show(answers: list[dict]) -> tuple[float, float]:
    """Print some answers from memory beside the truth; returns the share of right ones, with memory and without."""
    stored, none = ([a for a in answers if a["condition"] == name] for name in ("stored", "none"))
    print()
    for answer in stored[:SHOWN]:
        mark = "yes" if answer["exact_match"] else "NO "
        print(f"{mark}  {answer['question']}  {answer['answer']}  (true: {answer['references'][0]})")
    right, alone = (sum(a["exact_match"] for a in each) / len(each) for each in (stored, none))
    print(f"\nexactly right of {len(stored)}: {right:.1%} from memory, {alone:.1%} without it")
    return right, alone


def check(store: Path, articles: list[dict], right: float, alone: float) -> int:
    """Compare the store's memory with what the compressor gives on the spot."""
    computed = compress(articles)
    with Reader(store) as reader:
        stored = reader.fetch(computed.doc_ids)
    exact = computed.values.float()
    error = float(((stored.values - exact).square() / exact.var(dim=0)).mean())
    checks = {
        f"memory of {len(computed)} documents, {len(exact)} vectors: error below 0.01% of the variance": error < 1e-4,
        "memory answers more questions than none": right > alone,
    }
    for claim, holds in checks.items():
        print(f"{'yes' if holds else 'NO '}  {claim}")
    return 0 if all(checks.values()) else 1


def compress(articles: list[dict]) -> Memory:
    """The articles' memory without any store: read, tokenize, compress."""
    checkpoint, compression = Checkpoint(CHECKPOINT), load_config("tinypedia").compression
    tokenizer = PassageTokenizer(
        checkpoint.compressor_tokenizer, rate=checkpoint.rate, max_length=compression.max_length
    )
    texts = [compression.input_text(article["text"], article["title"]) for article in articles]
    tokenized = list(tokenizer.tokenize(texts, [compression.repeated(article["title"]) for article in articles]))
    passages = [passage for document in tokenized for passage in document.passages]
    memory = Compressor.load(checkpoint).compress(passages, stage="hidden")
    lengths = tuple(document.n_mem for document in tokenized)
    return Memory(memory.values, lengths, memory.stage, memory.connector, tuple(a["_id"] for a in articles))


def make_room(folder: Path) -> None:
    """Remove what an earlier run left; nothing else."""
    if not folder.exists():
        return
    if others := {path.name for path in folder.iterdir()} - CONTENTS:
        sys.exit(f"{folder} holds {sorted(others)[0]}, which is not this demonstration's. Name another folder.")
    shutil.rmtree(folder)


def pisco_index(*arguments: object) -> str:
    """Print a command as one would type it, run it, and print and return what it says."""
    words = [str(argument) for argument in arguments]
    print(f"$ {shlex.join(['pisco-index', *words])}", flush=True)
    # Only the output goes through a pipe: progress and errors are seen as they come.
    run = subprocess.run([COMMAND, *words], stdout=subprocess.PIPE, text=True, check=False)  # noqa: S603
    print(run.stdout, end="", flush=True)
    if run.returncode:
        sys.exit(run.returncode)
    return run.stdout


def read_lines(path: Path) -> list[dict]:
    """The records of a JSON lines file."""
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def say(text: str) -> None:
    """Tell what comes next."""
    print(f"\n# {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1] if len(sys.argv) > 1 else "demo-index")))
