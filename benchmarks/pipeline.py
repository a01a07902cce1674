"""Measure a build around a device of a given speed: the share of the time that the device is busy, and the cores used.

A simulated device stands in for the compressor. A batch takes as long as on a device that computes a given number of
passages of 125 tokens a second, one batch runs while the next is packed, and memory is random numbers. The rest of the
build is real: JSON lines are read, tokenized with a byte-level BPE of 32,000 tokens, encoded as int8, written and
committed.

``--dump FILE`` reads the wikitext of a MediaWiki export instead, whose pages are repeated under new ids and titles:
``--documents`` counts its pages. The tokenizer is trained on its prose. ``--reader-processes N`` reads in N processes,
whose processor seconds are given apart.

This machine may have too few cores to keep a fast device busy. ``--tokenizer-cores N`` simulates N more cores for the
tokenizer, which is most of the work and runs outside Python. Texts are tokenized in advance, and their ids are returned
after the time that N cores would take. The remaining work is real.

    python benchmarks/pipeline.py --speeds 1000,2000,4000,8000 --documents 40000
    python benchmarks/pipeline.py --speeds 4000,8000,16000 --tokenizer-cores 8
    python benchmarks/pipeline.py --speeds 500,1000 --dump enwiki.xml.bz2 --documents 1500 --reader-processes 1
"""

import json
import math
import os
import random
import resource
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from dumps import Sample, write_dump
from measure import options, positive, report
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from pisco_index import BuildConfig, Memory, build, new_checkpoint, new_tiny_checkpoint
from pisco_index.configs import CorpusConfig
from pisco_index.corpus import open_corpus
from pisco_index.model.forward.packing import Passages, offsets, pack
from pisco_index.model.passages import BareTokenizer
from pisco_index.pipeline import worker
from pisco_index.pipeline.pools import in_process
from pisco_index.store import Store

# A passage has 125 tokens and 8 memory tokens.
DIM, PASSAGE_TOKENS, TOKEN_BUDGET = 1024, 133, 65_536
# Pattern by which Qwen's tokenizers split a text.
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


class Device:
    """A simulated compressor, which computes nothing and takes the time of a device of a given speed.

    Attributes:
        speed: passages of 125 tokens per second.
        token_budget: largest number of tokens in a batch.
        busy: seconds of all batches.
        in_shard: False while the sample for the codec is taken, which is not measured.
    """

    speed = 0.0
    token_budget = TOKEN_BUDGET

    def __init__(self, memory_token_id: int):
        self._memory_token_id = memory_token_id
        self._numbers = torch.randn(TOKEN_BUDGET, DIM).to(torch.bfloat16)
        self.busy = self._free_at = 0.0
        self._began: float | None = None
        self.in_shard = False

    def launch(
        self, passages: Passages | Sequence[Sequence[int]], *, on_batch: Callable[[int, int], None], **_: Any
    ) -> "PendingBatches":
        """Pack passages into batches, and start them one after the other."""
        passages = Passages.of(passages)
        lengths = np.diff(offsets(passages.ids == self._memory_token_id)[offsets(passages.lengths)])
        memory = Memory(self._numbers[: int(lengths.sum())], tuple(lengths.tolist()), "hidden", "")
        launched = PendingBatches(memory, on_batch)
        # The sample that a codec is fitted to takes no time.
        ends, start = offsets(passages.lengths), 0 if self.in_shard else len(passages)
        while start < len(passages):
            stop = max(start + 1, int(np.searchsorted(ends, ends[start] + TOKEN_BUDGET, "right")) - 1)
            pack(passages, np.arange(start, stop), (self._memory_token_id,))
            tokens = int(ends[stop] - ends[start])
            launched.add(self._launch(tokens), stop - start, tokens)
            start = stop
        return launched

    def _launch(self, tokens: int) -> float:
        now = time.perf_counter()
        self._began = self._began or now
        seconds = tokens / PASSAGE_TOKENS / self.speed
        self.busy += seconds
        self._free_at = max(self._free_at, now) + seconds
        return self._free_at

    def busy_share(self) -> float:
        """Return the share of the time between the start of the first batch and the end of the last."""
        assert self._began is not None
        return self.busy / (self._free_at - self._began)


class PendingBatches:
    """Batches that the device computes, each until a given time. One batch runs while the next is packed."""

    def __init__(self, memory: Memory, on_batch: Callable[[int, int], None]):
        self._memory = memory
        self._on_batch = on_batch
        self._running: deque[tuple[float, int, int]] = deque()

    def add(self, until: float, passages: int, tokens: int) -> None:
        self._running.append((until, passages, tokens))
        self._wait(running=1)

    def finish(self) -> Memory:
        self._wait(running=0)
        return self._memory

    def _wait(self, running: int) -> None:
        """Wait until at most some batches are running."""
        while len(self._running) > running:
            until, passages, tokens = self._running.popleft()
            time.sleep(max(until - time.perf_counter(), 0.0))
            self._on_batch(passages, tokens)


def make_words(seed: int = 0) -> Callable[[int], list[str]]:
    """Return a function that draws words of an invented language, of which a few are common and most are rare."""
    chance = random.Random(seed)
    letters = "etaoinshrdlucmfwypvbgkjqxz"
    words = ["".join(chance.choices(letters, range(26, 0, -1), k=chance.randint(1, 11))) for _ in range(60_000)]
    weights = np.cumsum(1.0 / np.arange(2, len(words) + 2))
    return lambda count: chance.choices(words, cum_weights=weights.tolist(), k=count)


def make_corpus(path: Path, documents: int, words: Callable[[int], list[str]]) -> None:
    """Write documents of 100 words with titles, each of which is one passage."""
    with path.open("w") as file:
        for number in range(documents):
            text = " ".join(words(100)).capitalize() + "."
            file.write(json.dumps({"id": f"doc-{number}", "title": " ".join(words(2)), "text": text}) + "\n")


def prose_of(path: Path, characters: int) -> list[str]:
    """Return the first documents of a corpus."""
    texts: list[str] = []
    for source in open_corpus([str(path)], CorpusConfig()).sources:
        for document in source.read(0, None):
            texts.append(document.text)
            characters -= len(document.text)
            if characters < 0:
                return texts
    return texts


def make_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE of 32,000 tokens that splits texts as Qwen's tokenizers do."""
    backend = Tokenizer(models.BPE())
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=32_000, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    backend.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", pad_token="<pad>")


def make_checkpoint(folder: Path, texts: Iterable[str]) -> Path:
    tokenizer = make_tokenizer(texts)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=DIM,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        tie_word_embeddings=True,
    )
    Qwen3ForCausalLM(config).to(torch.bfloat16).save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    tiny = new_tiny_checkpoint(folder / "tiny")
    return new_checkpoint(folder / "checkpoint", folder / "base", tiny.path / "base_decoder").path


class Encoding:
    """The token ids of a text. They are copied, as a tokenizer copies them."""

    def __init__(self, ids: list[int]):
        self.ids = list(ids)


class SimulatedTokenizer:
    """Returns token ids that were computed in advance, after the time that a number of cores would take."""

    def __init__(self, backend: Any, texts: list[str], cores: int):
        with ThreadPoolExecutor(1) as thread:
            cpu_began = time.process_time()
            encodings = thread.submit(backend.encode_batch_fast, texts).result()
            seconds = time.process_time() - cpu_began
        self._ids = {text: each.ids for text, each in zip(texts, encodings, strict=True)}
        self._seconds = seconds / len(texts) / cores

    def no_truncation(self) -> None:
        """Do nothing, as the texts are tokenized already."""

    no_padding = no_truncation

    def encode_batch_fast(self, texts: list[str], *, add_special_tokens: bool) -> list[Encoding]:
        assert add_special_tokens
        time.sleep(len(texts) * self._seconds)
        return [Encoding(self._ids[text]) for text in texts]


def measure(
    speed: float, corpus: Path, checkpoint: Path, store: Path, config: BuildConfig, tokenizer_cores: int | None = None
) -> dict[str, Any]:
    """Run a build with a simulated device.

    Returns:
        The share of time that the device is busy, the processor seconds of this process and of the reader processes,
        and the number of documents.
    """
    device: list[Device] = []
    cpu_began: list[float] = []

    class SimulatedCompressor:
        @staticmethod
        def load(opened: Any, **_: Any) -> Device:
            device.append(Device(opened.compressor_tokenizer.convert_tokens_to_ids("<MEM>")))
            return device[-1]

    class Worker(worker.ShardWorker):
        def __init__(self, spec: worker.WorkerSpec):
            super().__init__(spec)
            if tokenizer_cores is not None:
                texts = [
                    self._spec.compression.input_text(record["text"], record["title"]) for record in records(corpus)
                ]
                tokenizer = self._readers.here._reading.tokenizer
                backend = SimulatedTokenizer(tokenizer._tokenizer.backend_tokenizer, texts, tokenizer_cores)
                tokenizer._tokenizer = BareTokenizer(backend)

        def run(self, *arguments: Any) -> worker.ShardResult:
            device[-1].in_shard = True
            cpu_began.append(time.process_time())
            return super().run(*arguments)

    readers_s = reader_seconds()
    kept = worker.Compressor, in_process.ShardWorker
    worker.Compressor, in_process.ShardWorker = SimulatedCompressor, Worker  # type: ignore[misc,assignment]
    Device.speed = speed
    try:
        build([corpus], checkpoint, store, config)
    finally:
        worker.Compressor, in_process.ShardWorker = kept  # type: ignore[misc]
    return {
        "busy": device[-1].busy_share(),
        "cpu_s": time.process_time() - cpu_began[0],
        "reader_cpu_s": reader_seconds() - readers_s,
        "documents": Store.open(store).table.count_rows(),
    }


def reader_seconds() -> float:
    """Return the processor seconds of the child processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def records(corpus: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in corpus.read_text().splitlines()]


def speeds(text: str) -> list[int]:
    """Return the numbers of an option, which commas separate."""
    return [positive(each) for each in text.split(",")]


def main() -> None:
    parser = options(__doc__)
    parser.add_argument(
        "--speeds", type=speeds, default="1000,2000,4000,8000", help="speeds of the device, in passages per second"
    )
    parser.add_argument("--documents", type=positive, default=40_000, help="number of documents, one passage each")
    parser.add_argument("--shard-documents", type=positive, default=4096, help="number of documents in a shard")
    parser.add_argument("--tokenizer-cores", type=positive, help="simulate this number of cores for the tokenizer")
    parser.add_argument("--dump", type=Path, help="MediaWiki export whose pages are repeated as the corpus")
    parser.add_argument("--reader-processes", type=int, help="number of processes that read; default: automatic")
    args = parser.parse_args()

    words = make_words()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        if args.dump:
            corpus = folder / "corpus.xml"
            sample = Sample(args.dump)
            write_dump(corpus, sample.head, islice(sample.repeated(math.inf), args.documents), "plain")
            texts: Iterable[str] = prose_of(corpus, 4_000_000)
        else:
            corpus = folder / "corpus.jsonl"
            make_corpus(corpus, args.documents, words)
            texts = (" ".join(words(1000)) for _ in range(500))
        checkpoint = make_checkpoint(folder, texts)
        # The simulated tokenizer is in this process.
        readers = 0 if args.tokenizer_cores else args.reader_processes
        run = {"shard_documents": args.shard_documents, "reader_processes": readers}
        config = BuildConfig.parse({"run": run, "store": {"stage": "hidden"}}, "benchmark")
        result: dict[str, Any] = {"baseline": "the device alone", "cores": os.cpu_count()}
        for speed in args.speeds:
            found = measure(speed, corpus, checkpoint, folder / f"store-{speed:g}", config, args.tokenizer_cores)
            each, reading = found["cpu_s"] / found["documents"], found["reader_cpu_s"] / found["documents"]
            result["documents"] = found["documents"]
            result[f"busy_at_{speed:g}"] = round(found["busy"], 3)
            result[f"cpu_us_per_document_at_{speed:g}"] = round(each * 1e6)
            result[f"reader_cpu_us_per_document_at_{speed:g}"] = round(reading * 1e6)
            result[f"cores_for_{speed:g}"] = round((each + reading) * speed, 1)
        report(result, args.json)


if __name__ == "__main__":
    main()
