"""Write a large Wikimedia dump by repeating the pages of a small one under new ids and titles.

python benchmarks/dumps.py SAMPLE.xml.bz2 OUT.xml.bz2 --megabytes 2000
"""

import argparse
import bz2
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path

PAGES_PER_STREAM = 100

Stream = list[tuple[int, str, bytes]]
"""Id, title and XML of each page."""


def pages(sample: Path, megabytes: float) -> Iterator[tuple[int, str, bytes]]:
    """Yield id, title and XML of pages, of as many bytes in all."""
    content = bz2.decompress(sample.read_bytes())
    found = re.findall(rb"  <page>.*?</page>\n", content, re.DOTALL)
    left = megabytes * 1e6
    for number in count():
        page = found[number % len(found)]
        title = re.search(rb"<title>(.*?)</title>", page)[1].decode() + f" ({number // len(found)})"
        page = re.sub(rb"<title>.*?</title>", f"<title>{title}</title>".encode().replace(b"\\", rb"\\"), page, count=1)
        page = re.sub(rb"<id>\d+</id>", b"<id>%d</id>" % (number + 1), page, count=1)
        yield number + 1, title, page
        left -= len(page)
        if left <= 0:
            return


def write_dump(sample: Path, path: Path, megabytes: float, kind: str = "multistream") -> int:
    """Write a dump.

    Args:
        sample: dump to repeat, compressed with bzip2.
        path: file to write.
        megabytes: size of the XML.
        kind: "multistream" as Wikimedia's, with the index beside it; "one" stream of bzip2; or "plain" XML.

    Returns:
        Number of pages.
    """
    content = bz2.decompress(sample.read_bytes())
    head, tail = content[: content.index(b"  <page>")], b"</mediawiki>\n"
    total, places = 0, list[str]()
    whole = bz2.BZ2Compressor()
    with path.open("wb") as file, ThreadPoolExecutor() as threads:

        def write(data: bytes) -> None:
            file.write(whole.compress(data) if kind == "one" else data if kind == "plain" else bz2.compress(data))

        write(head)
        streams = _groups(pages(sample, megabytes))
        while group := [stream for _, stream in zip(range(16), streams, strict=False)]:
            texts = [b"".join(page for *_, page in stream) for stream in group]
            packed = list(threads.map(bz2.compress, texts)) if kind == "multistream" else texts
            for stream, data in zip(group, packed, strict=True):
                places += [f"{file.tell()}:{page_id}:{title}\n" for page_id, title, _ in stream]
                total += len(stream)
                file.write(data) if kind == "multistream" else write(data)
        write(tail)
        if kind == "one":
            file.write(whole.flush())
    if kind == "multistream":
        name = path.name.removesuffix(".xml.bz2") + "-index.txt.bz2"
        path.with_name(name).write_bytes(bz2.compress("".join(places).encode()))
    return total


def _groups(found: Iterator[tuple[int, str, bytes]]) -> Iterator[Stream]:
    group: Stream = []
    for page in found:
        group.append(page)
        if len(group) == PAGES_PER_STREAM:
            yield group
            group = []
    if group:
        yield group


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sample", type=Path, help="dump to repeat, compressed with bzip2")
    parser.add_argument("out", type=Path, help="file to write")
    parser.add_argument("--megabytes", type=float, default=2000, help="size of the XML")
    parser.add_argument("--kind", choices=("multistream", "one", "plain"), default="multistream")
    args = parser.parse_args()
    write_dump(args.sample, args.out, args.megabytes, args.kind)


if __name__ == "__main__":
    main()
