"""Planning and reading a corpus: scan speed by format, and a one-stream compressed file read by 100 shards.

A file that is one compressed stream cannot be entered in the middle. Read forward, a source keeps its place between
shards; the baseline opens the file afresh for each shard, and decompresses all that lies before it.

    python benchmarks/corpus.py [--records 100000] [--json]
"""

import argparse
import bz2
import gzip
import json
import random
import tempfile
import time
from collections import Counter
from pathlib import Path

import zstandard
from measure import report

from pisco_index import CorpusConfig
from pisco_index.corpus import open_corpus, open_source

SHARDS = 100
# Of the shards read afresh, which cost the more the later they are, every tenth is read and counted ten times.
SAMPLED = 10


def make_records(count: int, seed: int = 0) -> bytes:
    words = [f"word{n}" for n in range(5000)]
    chance = random.Random(seed)
    lines = (json.dumps({"id": f"d{n}", "text": " ".join(chance.choices(words, k=80))}) for n in range(count))
    return "".join(f"{line}\n" for line in lines).encode()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=100_000)
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    args = parser.parse_args()

    raw = make_records(args.records)
    packed = {
        "jsonl": raw,
        "jsonl.gz": gzip.compress(raw, 6),
        "jsonl.zst": zstandard.compress(raw, 3),
        "jsonl.bz2": bz2.compress(raw),
    }
    result: dict[str, object] = {"baseline": "each shard opens the file afresh", "records": args.records}
    with tempfile.TemporaryDirectory() as scratch:
        for kind, content in packed.items():
            path = Path(scratch) / f"corpus.{kind}"
            path.write_bytes(content)
            (source,) = open_corpus([path], CorpusConfig()).sources
            began = time.perf_counter()
            positions = [record.position for record in source.scan(Counter())]
            result[f"{kind}_scan_mb_per_s"] = len(raw) / 1e6 / (time.perf_counter() - began)
            if kind == "jsonl":
                continue
            starts = positions[:: -(-len(positions) // SHARDS)]
            ranges = list(zip(starts, [*starts[1:], None], strict=True))
            source = open_source(source.spec)
            began = time.perf_counter()
            forward = sum(len(list(source.read(*part))) for part in ranges)
            result[f"{kind}_forward_s"] = time.perf_counter() - began
            assert forward == args.records
            seconds = 0.0
            for number, part in enumerate(ranges):
                if number % SAMPLED == SAMPLED // 2:
                    # A copy under another name shares no stream with what was read before.
                    afresh = path.with_name(f"{number}.{kind}")
                    path.rename(afresh)
                    (other,) = open_corpus([afresh], CorpusConfig()).sources
                    began = time.perf_counter()
                    list(other.read(*part))
                    seconds += SAMPLED * (time.perf_counter() - began)
                    afresh.rename(path)
            result[f"{kind}_restart_s"] = seconds
            result[f"{kind}_ratio"] = seconds / result[f"{kind}_forward_s"]  # type: ignore[operator]
    report(result, args.json)


if __name__ == "__main__":
    main()
