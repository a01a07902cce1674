"""Build an index of the sample corpus and answer questions from stored memory, with tiny random models.

    make demo
    python examples/demo.py [FOLDER]      (default: demo-index/, made anew each time)

Nothing is downloaded. The models have random weights, so the answers are noise. What the demonstration shows is that
nothing is lost on the way through the store: memory that is fetched by document id is the memory that the compressor
gives, and the decoder says the same from either. The last step checks this; the exit code is 1 if it does not hold.
"""

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import torch

from pisco_index import Checkpoint, Compressor, Decoder, Memory, PassageTokenizer, Reader, load_config

HERE = Path(__file__).parent
SAMPLE = os.path.relpath(HERE / "sample.jsonl")
QUESTIONS = HERE / "questions.jsonl"
COMMAND = Path(sys.executable).with_name("pisco-index")
CONTENTS = {"checkpoint", "store"}
NEW_TOKENS = 16


def main(folder: Path) -> int:
    """Run the demonstration in a folder; returns the exit code."""
    make_room(folder)
    checkpoint, store = folder / "checkpoint", folder / "store"
    questions = read_lines(QUESTIONS)

    say("A checkpoint: two tiny models with random weights. A real one is a folder with the same layout.")
    pisco_index("checkpoint", "new", checkpoint, "--tiny")

    say("Compress the sample corpus, 130 short articles, into a store.")
    build = ("build", SAMPLE, "--preset", "beir", "--checkpoint", checkpoint, "--out", store)
    pisco_index(*build)
    say("The same command again: it finds that everything is done. After a stop it would go on from there.")
    pisco_index(*build)
    say("What the store holds.")
    pisco_index("info", store)
    say("The memory of documents, by id.")
    pisco_index("get", store, *questions[0]["doc_ids"])
    say("An answer from stored memory: the decoder never sees the documents' text.")
    documents = [part for doc_id in questions[0]["doc_ids"] for part in ("--doc", doc_id)]
    length = ("--max-new-tokens", NEW_TOKENS)
    answer = pisco_index(
        "ask", store, questions[0]["question"], *documents, "--checkpoint", checkpoint, *length, "--json"
    )

    say("All questions, from the store and from memory computed on the spot (in Python, see examples/demo.py).")
    return compare(Checkpoint(checkpoint), store, questions, json.loads(answer)["text"])


def compare(checkpoint: Checkpoint, store: Path, questions: list[dict], told: str) -> int:
    """Answer every question from stored and from newly computed memory, and check that nothing differs."""
    computed = compress_sample(checkpoint)
    with Reader(store) as reader:
        stored = reader.fetch(computed.doc_ids)
    difference = float((stored.values - computed.values.float()).abs().max())

    decoder = Decoder.load(checkpoint)
    asked = [question["question"] for question in questions]
    picks = [[computed.doc_ids.index(doc_id) for doc_id in question["doc_ids"]] for question in questions]
    others = [[(document + 1) % len(computed) for document in pick] for pick in picks]
    from_store, from_computed, from_others = (
        [
            decoder.answer(q, memory.select(pick), max_new_tokens=NEW_TOKENS)
            for q, pick in zip(asked, chosen, strict=True)
        ]
        for memory, chosen in ((stored, picks), (computed, picks), (stored, others))
    )
    changed = sum(one != other for one, other in zip(from_store, from_others, strict=True))
    for question, pick, one, two in zip(asked, picks, from_store, from_computed, strict=True):
        print(f"\n{question}  ({', '.join(computed.doc_ids[i] for i in pick)})")
        print(f"  from the store:        {one!r}")
        print(f"  computed on the spot:  {two!r}")

    checks = {
        f"memory of {len(computed)} documents, {len(computed.values)} vectors: largest difference {difference}": (
            difference == 0
        ),
        f"{len(asked)} answers from the store equal those computed on the spot": from_store == from_computed,
        f"{changed} answers change when the decoder is given the memory of other documents": changed > 0,
        "the command above gave the same answer as Python": from_store[0] == told,
    }
    print()
    for check, holds in checks.items():
        print(f"{'yes' if holds else 'NO '}  {check}")
    print(
        "\nThe weights are random, so the words mean nothing yet: with a trained checkpoint the same commands give "
        "real\nanswers. What was shown is that storing and fetching memory changes nothing about them."
    )
    return 0 if all(checks.values()) else 1


def compress_sample(checkpoint: Checkpoint) -> Memory:
    """The sample's memory without any store: read, tokenize, compress."""
    compression = load_config("beir").compression
    records = read_lines(HERE / "sample.jsonl")
    tokenizer = PassageTokenizer(
        checkpoint.compressor_tokenizer, rate=checkpoint.rate, max_length=compression.max_length
    )
    tokenized = list(tokenizer.tokenize([compression.input_text(r["text"], r["title"]) for r in records]))
    passages = [passage for document in tokenized for passage in document.passages]
    compressor = Compressor.load(checkpoint, dtype=getattr(torch, compression.dtype))
    memory = compressor.compress(passages, stage="hidden")
    lengths = tuple(document.n_mem for document in tokenized)
    return Memory(memory.values, lengths, memory.stage, memory.connector, tuple(r["_id"] for r in records))


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
