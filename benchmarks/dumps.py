"""Write a large Wikimedia dump by repeating the pages of a small one under new ids and titles.

python benchmarks/dumps.py SAMPLE.xml.bz2 OUT.xml.bz2 --megabytes 2000
"""

import argparse
import bz2
import re
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count, islice
from pathlib import Path
from typing import NamedTuple, TypeVar

Item = TypeVar("Item")

PAGES_PER_STREAM = 100
# Streams that are compressed at a time.
STREAMS_AT_ONCE = 16
_TITLE = re.compile(rb"<title>(.*?)</title>", re.DOTALL)
_ID = re.compile(rb"<id>\d+</id>")


class Page(NamedTuple):
    """A page of a dump: its id, its title, and its XML."""

    id: int
    title: str
    xml: bytes

    @classmethod
    def of(cls, xml: bytes, number: int, suffix: str) -> "Page":
        """Return a page of a sample under the id ``number``, with another end of its title."""
        found = _TITLE.search(xml)
        assert found is not None
        title = found[1].decode() + suffix
        xml = _TITLE.sub(lambda _: b"<title>%s</title>" % title.encode(), xml, count=1)
        return cls(number, title, _ID.sub(b"<id>%d</id>" % number, xml, count=1))


class Sample:
    """A small dump whose pages are repeated.

    Args:
        path: the dump, compressed with bzip2.

    Attributes:
        head: the XML before the first page.
        pages: the XML of each page.
    """

    def __init__(self, path: Path):
        content = bz2.decompress(path.read_bytes())
        self.head = content[: content.index(b"  <page>")]
        self.pages: list[bytes] = re.findall(rb"  <page>.*?</page>\n", content, re.DOTALL)

    def repeated(self, megabytes: float) -> Iterator[Page]:
        """Yield its pages again and again under new ids, from 1 on, and new titles, until they have a size."""
        left = megabytes * 1e6
        for number in count():
            page = Page.of(self.pages[number % len(self.pages)], number + 1, f" ({number // len(self.pages)})")
            yield page
            left -= len(page.xml)
            if left <= 0:
                return


def write_dump(path: Path, head: bytes, pages: Iterable[Page], kind: str = "multistream") -> int:
    """Write a dump.

    Args:
        path: file to write.
        head: the XML before the first page.
        pages: the pages.
        kind: "multistream" as Wikimedia's, with the index beside it; "one" stream of bzip2; or "plain" XML.

    Returns:
        Number of pages.
    """
    total, places = 0, list[str]()
    whole = bz2.BZ2Compressor()
    with path.open("wb") as file, ThreadPoolExecutor() as threads:

        def write(data: bytes) -> None:
            file.write(whole.compress(data) if kind == "one" else data if kind == "plain" else bz2.compress(data))

        write(head)
        streams = _groups(iter(pages), PAGES_PER_STREAM)
        for group in _groups(streams, STREAMS_AT_ONCE):
            texts = [b"".join(page.xml for page in stream) for stream in group]
            packed = list(threads.map(bz2.compress, texts)) if kind == "multistream" else texts
            for stream, data in zip(group, packed, strict=True):
                places += [f"{file.tell()}:{page.id}:{page.title}\n" for page in stream]
                total += len(stream)
                file.write(data) if kind == "multistream" else write(data)
        write(b"</mediawiki>\n")
        if kind == "one":
            file.write(whole.flush())
    if kind == "multistream":
        name = path.name.removesuffix(".xml.bz2") + "-index.txt.bz2"
        path.with_name(name).write_bytes(bz2.compress("".join(places).encode()))
    return total


def _groups(items: Iterator[Item], size: int) -> Iterator[list[Item]]:
    """Yield consecutive items in lists of a size."""
    while group := list(islice(items, size)):
        yield group


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sample", type=Path, help="dump to repeat, compressed with bzip2")
    parser.add_argument("out", type=Path, help="file to write")
    parser.add_argument("--megabytes", type=float, default=2000, help="size of the XML")
    parser.add_argument("--kind", choices=("multistream", "one", "plain"), default="multistream")
    args = parser.parse_args()
    sample = Sample(args.sample)
    write_dump(args.out, sample.head, sample.repeated(args.megabytes), args.kind)


if __name__ == "__main__":
    main()
