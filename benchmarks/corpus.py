"""Measure how fast a corpus is planned and read, for each compression, and what it saves to read shards forward.

A file that is one compressed stream cannot be entered in the middle. A source that reads forward keeps its place
between two of the 100 shards. The baseline opens the file afresh for each shard, and decompresses everything before it.

    python benchmarks/corpus.py --records 100000

With ``--dump``, it measures instead how fast a Wikimedia dump is planned, by one process and by several.

    python benchmarks/corpus.py --dump SAMPLE.xml.bz2 --megabytes 500
"""

import bz2
import gzip
import json
import os
import random
import resource
import tempfile
import time
from collections import Counter
from pathlib import Path

import zstandard
from dumps import Sample, write_dump
from measure import options, report, seconds

from pisco_index.configs import CorpusConfig
from pisco_index.corpus import Source, open_corpus, open_source
from pisco_index.pipeline.planning.planner import plan_corpus

SHARDS = 100
# Every tenth shard is read afresh and counts ten times. Later shards cost more, and all of them would take minutes.
SAMPLED = 10

Range = tuple[int, int | None]


def make_records(count: int, seed: int = 0) -> bytes:
    words = [f"word{n}" for n in range(5000)]
    chance = random.Random(seed)
    lines = (json.dumps({"id": f"d{n}", "text": " ".join(chance.choices(words, k=80))}) for n in range(count))
    return "".join(f"{line}\n" for line in lines).encode()


def open_file(path: Path) -> Source:
    (source,) = open_corpus([path], CorpusConfig()).sources
    return source


def shards_of(positions: list[int]) -> list[Range]:
    """Return the beginning and the end of each shard."""
    starts = positions[:: -(-len(positions) // SHARDS)]
    return list(zip(starts, [*starts[1:], None], strict=True))


def read_forward(source: Source, ranges: list[Range], records: int) -> None:
    assert sum(len(list(source.read(*part))) for part in ranges) == records


def restart_s(path: Path, ranges: list[Range]) -> float:
    """Return the seconds of reading each shard with a source that opens the file afresh."""
    total = 0.0
    for number, part in enumerate(ranges):
        if number % SAMPLED == SAMPLED // 2:
            # Under another name the file shares no stream with what was read before.
            renamed = path.with_name(f"{number}-{path.name}")
            path.rename(renamed)
            source = open_file(renamed)
            total += SAMPLED * seconds(lambda source=source, part=part: list(source.read(*part)))
            renamed.rename(path)
    return total


def measure(path: Path, megabytes: float, records: int) -> dict[str, float]:
    """Return the figures of one file, by name."""
    source, positions = open_file(path), list[int]()
    took = seconds(lambda: positions.extend(record.position for record in source.scan(Counter())))
    result = {"scan_mb_per_s": megabytes / took}
    if path.suffix != ".jsonl":
        ranges, source = shards_of(positions), open_source(source.spec)
        result["forward_s"] = seconds(lambda: read_forward(source, ranges, records))
        result["restart_s"] = restart_s(path, ranges)
        result["ratio"] = result["restart_s"] / result["forward_s"]
    return result


def cpu_s() -> float:
    """Return the seconds of processors that this process and its former children took."""
    used = [resource.getrusage(each) for each in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def measure_planning(path: Path, megabytes: float, processes: int) -> dict[str, float]:
    """Return the figures of planning one file, by name."""
    began, used = time.perf_counter(), cpu_s()
    plan_corpus(open_corpus([path], CorpusConfig()), shard_documents=4096, processes=processes)
    took, used = time.perf_counter() - began, cpu_s() - used
    return {"mb_per_s": megabytes / took, "mb_per_cpu_s": megabytes / used}


def plan_dump(sample: Sample, megabytes: float) -> dict[str, object]:
    """Return the figures of planning a dump, by name."""
    result: dict[str, object] = {"megabytes": megabytes, "cores": os.cpu_count()}
    with tempfile.TemporaryDirectory() as scratch:
        for kind in ("plain", "multistream", "one"):
            path = Path(scratch) / f"{kind}.xml.bz2"
            write_dump(path, sample.head, sample.repeated(megabytes), kind)
            for processes in dict.fromkeys((1, os.cpu_count() or 1)):
                figures = measure_planning(path, megabytes, processes)
                result |= {f"{kind}_{processes}_{name}": value for name, value in figures.items()}
    return result


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--records", type=int, default=100_000, help="number of records in the corpus")
    parser.add_argument("--dump", type=Path, metavar="FILE", help="small dump, in bzip2, to repeat and plan")
    parser.add_argument("--megabytes", type=float, default=500, help="size of the XML that is planned with --dump")
    args = parser.parse_args()
    if args.dump:
        report(plan_dump(Sample(args.dump), args.megabytes), args.json)
        return

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
            result |= {f"{kind}_{name}": value for name, value in measure(path, len(raw) / 1e6, args.records).items()}
    report(result, args.json)


if __name__ == "__main__":
    main()
