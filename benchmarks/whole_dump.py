"""Build an index of a large Wikimedia dump from end to end, kill it three times, update it, verify it and read from it.

The pages of a dump are repeated with new ids and titles until they have ``--megabytes`` of XML, in a multistream bz2
file. The checkpoint has random weights and one small layer. Each command runs in a process of its own; the builds are
killed with SIGKILL after a quarter, a half and three quarters of their shards. Then the dump is changed: of every 100
pages one has another text, one is gone and one is new. The script ends with an error if a document is lost, doubled or
has other memory than its text gives.

    python benchmarks/whole_dump.py --dump enwiki-sample.xml.bz2 --folder /data/whole
"""

import bz2
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import torch
from measure import options, positive, print_json
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from pisco_index import load_config, new_checkpoint, new_tiny_checkpoint
from pisco_index.corpus import open_corpus

COMMAND = Path(sys.executable).with_name("pisco-index")
_PAGE = re.compile(r"  <page>\n.*?  </page>\n", re.DOTALL)
_TITLE = re.compile(r"<title>(.*?)</title>", re.DOTALL)
_ID = re.compile(r"<id>(\d+)</id>")
_TEXT_END = "</text>"
# Pages in a stream of Wikimedia's multistream dumps.
STREAM_PAGES = 100
# Distance of the ids of two copies.
COPY = 1_000_000_000
# Places, among a hundred pages, of those that change.
HUNDRED, CHANGED, GONE, NEW = 100, 0, 1, 2
KILLS = (0.25, 0.5, 0.75)
# Documents that are compressed again by each verification.
SAMPLE = 200


@dataclass(frozen=True)
class Dump:
    """The pages of a dump, to be repeated.

    Attributes:
        head: the XML before the first page.
        pages: the XML of each page.
    """

    head: str
    pages: tuple[str, ...]

    @classmethod
    def read(cls, path: Path) -> "Dump":
        text = bz2.decompress(path.read_bytes()).decode()
        return cls(text[: text.index("  <page>\n")], tuple(_PAGE.findall(text)))

    def copies(self, megabytes: int) -> int:
        """Return the number of copies of all pages that have this size."""
        return -(-megabytes * 1_000_000 // sum(len(page.encode()) for page in self.pages))

    def copy(self, number: int) -> Iterator[str]:
        """Yield the pages of a copy, under ids and titles of their own."""
        return (_numbered(page, number * COPY, f" {number}") for page in self.pages)

    def changed_copy(self, number: int) -> Iterator[str]:
        """Yield the pages of a copy of which one in a hundred has another text, one is gone and one is new."""
        for place, page in enumerate(self.copy(number)):
            turn = (number * len(self.pages) + place) % HUNDRED
            if turn != GONE:
                yield with_more_text(page) if turn == CHANGED else page
            if turn == NEW:
                yield _numbered(self.pages[place], number * COPY + COPY // 2, f" {number}, new")


def with_more_text(page: str) -> str:
    return page.replace(_TEXT_END, f"\n\nThis page was changed.{_TEXT_END}", 1)


def _numbered(page: str, offset: int, suffix: str) -> str:
    page = _ID.sub(lambda found: f"<id>{int(found[1]) + offset}</id>", page, count=1)
    return _TITLE.sub(lambda found: f"<title>{found[1]}{suffix}</title>", page, count=1)


def write_dump(path: Path, head: str, pages: Iterable[str]) -> None:
    """Write a multistream file: the head, streams of 100 pages, and the end."""
    with path.open("wb") as file:
        file.write(bz2.compress(head.encode()))
        rest = iter(pages)
        while stream := list(islice(rest, STREAM_PAGES)):
            file.write(bz2.compress("".join(stream).encode()))
        file.write(bz2.compress(b"</mediawiki>\n"))


def expected_documents(dump: Dump, folder: Path, copies: int) -> tuple[int, int]:
    """Return the number of documents of the large dump, and of the changed one, from those of each page."""
    counts = []
    for name, pages in (("plain", dump.pages), ("changed", map(with_more_text, dump.pages))):
        path = folder / f"{name}.xml.bz2"
        write_dump(path, dump.head, pages)
        corpus = open_corpus([path], load_config("wikipedia").corpus)
        read = (document.doc_id for source in corpus.sources for document in source.read(0, None))
        counts.append(Counter(doc_id.partition("#")[0] for doc_id in read))
    before = after = 0
    for number in range(copies):
        for place, page in enumerate(dump.pages):
            own, other = (count[_ID.search(page)[1]] for count in counts)  # type: ignore[index]
            turn = (number * len(dump.pages) + place) % HUNDRED
            before += own
            after += {CHANGED: other, GONE: 0, NEW: 2 * own}.get(turn, own)
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
        while process.poll() is None and _done(store) < killed_at:
            time.sleep(2)
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
    args = parser.parse_args()
    args.folder.mkdir(parents=True)
    result = measure(Dump.read(args.dump), args.folder, args.megabytes)
    if args.json:
        print_json(result)


def measure(dump: Dump, folder: Path, megabytes: int) -> dict[str, Any]:
    """Take all steps, check the counts, and return the figures."""
    copies = dump.copies(megabytes)
    first, second, store = folder / "first.xml.bz2", folder / "second.xml.bz2", folder / "store"
    checkpoint = make_checkpoint(folder, dump.pages)
    write_dump(first, dump.head, chain.from_iterable(map(dump.copy, range(copies))))
    write_dump(second, dump.head, chain.from_iterable(map(dump.changed_copy, range(copies))))
    table: list[dict[str, Any]] = []
    print("| step | seconds | cpu-seconds | peak MiB |\n|---|---|---|---|")
    options = ("--preset", "wikipedia", "--checkpoint", checkpoint, "--out", store, "--json")
    for part in KILLS:
        run(table, f"build, killed at {part:.0%}", "build", first, *options, killed_at=part)
    run(table, "build, to its end", "build", first, *options)
    before = verify(table, "verify", store, checkpoint, first)
    run(table, "update", "build", second, *options, "--prune")
    after = verify(table, "verify the update", store, checkpoint, second)
    run(table, "build again, unchanged", "build", second, *options, "--prune")
    asked = folder / "questions.txt"
    asked.write_text("\n".join(f"What is {title}?" for page in dump.pages for title in _TITLE.findall(page)) + "\n")
    run(table, "retrieve", "retrieve", store, "--questions", asked, "--out", folder / "run.trec")
    expected = expected_documents(dump, folder, copies)
    print(f"{copies} copies: {before:,} documents, {after:,} after the update")
    if (before, after) != expected:
        sys.exit(f"{expected[0]:,} and {expected[1]:,} documents were expected: some are lost or doubled")
    return {"copies": copies, "documents": before, "documents_after": after, "steps": table}


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
