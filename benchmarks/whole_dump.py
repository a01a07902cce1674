"""Build an index of a large Wikimedia dump from end to end, kill it three times, update it, verify it and read from it.

The pages of a dump are repeated with new ids and titles until they have ``--megabytes`` of XML, in a multistream bz2
file. The checkpoint has random weights and one small layer. Each command runs in a process of its own; the builds are
killed with SIGKILL after a quarter, a half and three quarters of their shards. Then the dump is changed: of every 100
pages one has another text, one is gone and one is new. The script ends with an error if a document is lost, doubled or
has other memory than its text gives.

    python benchmarks/whole_dump.py --dump enwiki-sample.xml.bz2 --folder /data/whole
"""

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from dumps import Page, Sample, write_dump
from measure import options, positive, print_json
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from pisco_index import load_config, new_checkpoint, new_tiny_checkpoint
from pisco_index.corpus import open_corpus

COMMAND = Path(sys.executable).with_name("pisco-index")
_TEXT_END = b"</text>"
# Number that is added to the id of a page to make the id of a new one.
NEW_IDS = 1_000_000_000
# Places, among a hundred pages, of those that change.
HUNDRED, CHANGED, GONE, NEW = 100, 0, 1, 2
KILLS = (0.25, 0.5, 0.75)
_ENDED = os.WEXITED | os.WNOHANG | os.WNOWAIT
# Documents that are compressed again by each verification.
SAMPLE = 200
QUESTIONS = 200


def changed(sample: Sample, pages: Iterable[Page]) -> Iterator[Page]:
    """Yield pages of which one in a hundred has another text, one is gone and one is new."""
    for place, page in enumerate(pages):
        turn = place % HUNDRED
        if turn != GONE:
            yield with_more_text(page) if turn == CHANGED else page
        if turn == NEW:
            yield Page.of(sample.pages[place % len(sample.pages)], NEW_IDS + page.id, f", new {place}")


def with_more_text(page: Page) -> Page:
    return page._replace(xml=page.xml.replace(_TEXT_END, b"\n\nThis page was changed." + _TEXT_END, 1))


def expected_documents(sample: Sample, folder: Path, pages: int) -> tuple[int, int]:
    """Return the number of documents of the large dump, and of the changed one, from those of each page.

    Args:
        sample: the dump whose pages are repeated.
        folder: folder for small dumps.
        pages: number of pages in the large dump.
    """
    once = list(islice(sample.repeated(math.inf), len(sample.pages)))
    counts = []
    for name, own in (("plain", once), ("changed", map(with_more_text, once))):
        path = folder / f"{name}.xml.bz2"
        write_dump(path, sample.head, own)
        corpus = open_corpus([path], load_config("wikipedia").corpus)
        read = (document.doc_id for source in corpus.sources for document in source.read(0, None))
        found = Counter(int(doc_id.partition("#")[0]) for doc_id in read)
        counts.append([found[page.id] for page in once])
    before = after = 0
    for place in range(pages):
        own, other = (count[place % len(once)] for count in counts)
        before += own
        after += {CHANGED: other, GONE: 0, NEW: 2 * own}.get(place % HUNDRED, own)
    return before, after


def run(table: list[dict[str, Any]], step: str, *arguments: Any, killed_at: float | None = None) -> str:
    """Run a command and add its figures to the table.

    Args:
        table: rows of the table.
        step: name of the step.
        arguments: arguments of ``pisco-index``.
        killed_at: part of the shards after which the command is killed; None lets it end.

    Returns:
        Its standard output.

    Raises:
        SystemExit: the command failed.
    """
    words = [str(COMMAND), *map(str, arguments)]
    began = time.perf_counter()
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    if killed_at is not None:
        store = arguments[arguments.index("--out") + 1]
        # The process must not be waited for before wait4, which alone tells what it used.
        while os.waitid(os.P_PID, process.pid, _ENDED) is None and _done(store) < killed_at:
            time.sleep(1)
        process.send_signal(signal.SIGKILL)
    assert process.stdout is not None
    said = process.stdout.read()
    _, status, used = os.wait4(process.pid, 0)
    code = process.returncode = os.waitstatus_to_exitcode(status)
    row = {
        "step": step,
        "seconds": time.perf_counter() - began,
        "cpu_s": used.ru_utime + used.ru_stime,
        "peak_mib": used.ru_maxrss / 1024,
    }
    table.append(row)
    print(f"| {step} | {row['seconds']:,.0f} | {row['cpu_s']:,.0f} | {row['peak_mib']:,.0f} |", flush=True)
    if code != (0 if killed_at is None else -signal.SIGKILL):
        sys.exit(f"the step {step!r} failed with exit code {code}:\n{said[-2000:]}")
    return said


def _done(store: Path) -> float:
    """Return the part of a store's shards that are done."""
    done = subprocess.run([COMMAND, "status", store, "--json"], capture_output=True, text=True)
    if done.returncode:
        return 0.0
    status = json.loads(done.stdout)
    return 1 - status["missing"] / status["shards"]


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--dump", type=Path, required=True, help="pages-articles dump, bz2, to repeat")
    parser.add_argument("--folder", type=Path, required=True, help="new folder for everything that is written")
    parser.add_argument("--megabytes", type=positive, default=2000, help="size of the large dump, unpacked")
    parser.add_argument("--shard-documents", type=positive, default=4096, help="number of documents in a shard")
    args = parser.parse_args()
    args.folder.mkdir(parents=True)
    result = measure(Sample(args.dump), args.folder, args.megabytes, args.shard_documents)
    if args.json:
        print_json(result)


def measure(sample: Sample, folder: Path, megabytes: int, shard_documents: int) -> dict[str, Any]:
    """Take all steps, check the counts, and return the figures."""
    first, second, store = folder / "first.xml.bz2", folder / "second.xml.bz2", folder / "store"
    checkpoint = make_checkpoint(folder, [page.decode() for page in sample.pages])
    pages = write_dump(first, sample.head, sample.repeated(megabytes))
    write_dump(second, sample.head, changed(sample, sample.repeated(megabytes)))
    table: list[dict[str, Any]] = []
    print("| step | seconds | cpu-seconds | peak MiB |\n|---|---|---|---|")
    options = ("--preset", "wikipedia", "--checkpoint", checkpoint, "--out", store, "--json")
    options += ("--shard-documents", shard_documents)
    for part in KILLS:
        run(table, f"build, killed at {part:.0%}", "build", first, *options, killed_at=part)
    run(table, "build, to its end", "build", first, *options)
    before = verify(table, "verify", store, checkpoint, first)
    run(table, "update", "build", second, *options, "--prune")
    after = verify(table, "verify the update", store, checkpoint, second)
    run(table, "build again, unchanged", "build", second, *options, "--prune")
    asked = folder / "questions.txt"
    titles = (page.title for page in islice(sample.repeated(math.inf), QUESTIONS))
    asked.write_text("".join(f"What is {title}?\n" for title in titles))
    run(table, "retrieve", "retrieve", store, "--questions", asked, "--out", folder / "run.trec")
    expected = expected_documents(sample, folder, pages)
    print(f"{pages:,} pages: {before:,} documents, {after:,} after the update")
    if (before, after) != expected:
        sys.exit(f"{expected[0]:,} and {expected[1]:,} documents were expected: some are lost or doubled")
    return {"pages": pages, "documents": before, "documents_after": after, "steps": table}


def make_checkpoint(folder: Path, texts: Sequence[str]) -> Path:
    """Make a checkpoint of random weights with one small layer, and a tokenizer of 32,000 tokens trained on texts."""
    tiny = new_tiny_checkpoint(folder / "tiny").path
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    letters = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=32_000, initial_alphabet=letters, show_progress=False)
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", pad_token="<pad>")
    config = AutoConfig.from_pretrained(tiny / "base_compressor")
    config.update({"num_hidden_layers": 1, "layer_types": ["full_attention"], "vocab_size": len(tokenizer)})
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    return new_checkpoint(folder / "checkpoint", folder / "base", tiny / "base_decoder").path


def verify(table: list[dict[str, Any]], step: str, store: Path, checkpoint: Path, corpus: Path) -> int:
    """Verify every row, and the memory of some documents by compressing them again. Return the number of documents."""
    sample = ("--checkpoint", checkpoint, "--sample", SAMPLE, "--corpus", corpus)
    said = run(table, step, "verify", store, *sample, "--json")
    return json.loads(said)["documents"]


if __name__ == "__main__":
    main()
