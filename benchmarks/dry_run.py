"""Measure how often the range that a dry run gives holds the time that the build then takes, over ten corpora.

The corpora differ in the length and number of their documents, in format, codec and cutting. For each one the script
prints the dry run's range, the seconds that the build took, and the ratio of these to the expected seconds.

    python benchmarks/dry_run.py
"""

import gzip
import json
import random
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from measure import CHECKPOINT, options, print_json, report

from pisco_index import BuildConfig, build, dry_run

TEXT = "the of river city born known journey in was Ebir Parger history year long house north small music"
Document = dict[str, str]


def documents(*sizes: tuple[int, int], seed: int) -> Iterator[Document]:
    """Yield documents of about so many characters: (number, characters), (number, characters), …"""
    chance = random.Random(seed)
    for part, (count, characters) in enumerate(sizes):
        for n in range(count):
            words = chance.choices(TEXT.split(), k=max(1, round(chance.uniform(0.5, 1.5) * characters / 5)))
            yield {"id": f"{part}-{n}", "title": f"Title {n}", "text": " ".join(words)}


def write_jsonl(path: Path, found: Iterator[Document]) -> None:
    path.write_text("".join(json.dumps(each) + "\n" for each in found))


def write_gzip(path: Path, found: Iterator[Document]) -> None:
    path.write_bytes(gzip.compress("".join(json.dumps(each) + "\n" for each in found).encode()))


def write_tsv(path: Path, found: Iterator[Document]) -> None:
    path.write_text("id\ttitle\ttext\n" + "".join("\t".join(each.values()) + "\n" for each in found))


def write_parquet(path: Path, found: Iterator[Document]) -> None:
    pq.write_table(pa.Table.from_pylist(list(found)), path)


def write_dump(path: Path, found: Iterator[Document]) -> None:
    pages = "".join(
        f"<page><title>{each['title']}</title><ns>0</ns><id>{n}</id><revision><id>{n}</id><text>{each['text']}</text>"
        "</revision></page>\n"
        for n, each in enumerate(found, 1)
    )
    path.write_text(f"<mediawiki>\n{pages}</mediawiki>\n")


# Name, writer, sizes of the documents, and settings of the build.
CORPORA: tuple[tuple[str, Callable[[Path, Iterator[Document]], None], tuple[tuple[int, int], ...], Any], ...] = (
    ("sentences.jsonl", write_jsonl, ((3000, 80),), {}),
    ("articles.jsonl", write_jsonl, ((300, 1500),), {}),
    ("books.jsonl", write_jsonl, ((6, 80_000),), {}),
    ("long_then_short.jsonl", write_jsonl, ((20, 12_000), (2000, 60)), {}),
    ("short_then_long.jsonl", write_jsonl, ((2000, 60), (20, 12_000)), {"store": {"codec": "bf16"}}),
    ("passages.tsv", write_tsv, ((1500, 250),), {"store": {"codec": "klt3"}}),
    ("pages.parquet", write_parquet, ((500, 700),), {"compression": {"max_length": 512}}),
    ("dump.xml", write_dump, ((100, 3000),), {"corpus": {"passage_words": 50}}),
    ("cut.jsonl", write_jsonl, ((200, 2000),), {"corpus": {"passage_words": 20}, "run": {"shard_documents": 64}}),
    ("few.jsonl.gz", write_gzip, ((20, 300),), {"store": {"index": False}}),
)


def measure(folder: Path, number: int) -> dict[str, Any]:
    name, write, sizes, settings = CORPORA[number]
    write(folder / name, documents(*sizes, seed=number))
    config = BuildConfig.parse({"compression": {"max_length": 128}} | settings, name)
    inputs = [folder / name], CHECKPOINT, folder / f"store-{number}", config
    estimate = dry_run(*inputs)
    took = build(*inputs).seconds
    least, most = estimate.seconds_range
    return {
        "corpus": name,
        "least_s": least,
        "most_s": most,
        "took_s": took,
        "took_to_expected": took / estimate.seconds,
        "holds": least <= took <= most,
    }


def main() -> None:
    args = options(__doc__).parse_args()
    with tempfile.TemporaryDirectory() as folder:
        results = [measure(Path(folder), number) for number in range(len(CORPORA))]
    shown = {
        each["corpus"]: f"{each['least_s']:.1f} to {each['most_s']:.1f} s expected, {each['took_s']:.1f} s taken, "
        f"{each['took_to_expected']:.2f} of the expected seconds"
        for each in results
    }
    report(shown | {"held": f"{sum(each['holds'] for each in results)} of {len(results)}"}, as_json=False)
    if args.json:
        print_json({"corpora": results})


if __name__ == "__main__":
    main()
