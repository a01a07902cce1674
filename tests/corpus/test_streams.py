"""Decompressed text by offset: entered at members, read forward once, and damage named with its place."""

import bz2
import gzip
import json
from collections import Counter

import pytest
import zstandard

from pisco_index.configs.corpus import CorpusConfig
from pisco_index.corpus import Document, open_corpus, streams
from pisco_index.errors import CorpusError

COMPRESS = {"gzip": gzip.compress, "bz2": bz2.compress, "zstd": zstandard.compress}
RECORD = '{"id": "a", "text": "t"}\n'


def as_lines(documents):
    return "\n".join(json.dumps({"id": d.doc_id, "text": d.text}) for d in documents).encode()


@pytest.fixture
def opened(monkeypatch):
    """The compressions of the members that were entered."""
    found = []
    original = streams.new_decompressor
    monkeypatch.setattr(streams, "new_decompressor", lambda kind: found.append(kind) or original(kind))
    return found


@pytest.mark.parametrize("compression", COMPRESS)
def test_rising_positions_decompress_a_file_once(tmp_path, compression, opened):
    documents = [Document(f"d{number}", f"{number * 7919 % 10007} " * 200) for number in range(3000)]
    path = tmp_path / "corpus.jsonl.z"
    path.write_bytes(COMPRESS[compression](as_lines(documents)))
    (source,) = open_corpus([path], CorpusConfig()).sources
    positions = [record.position for record in source.scan(Counter())]
    opened.clear()
    bounds = positions[::100]
    found = [d for shard in zip(bounds, [*bounds[1:], None], strict=True) for d in source.read(*shard)]
    assert [d.text for d in found] == [d.text for d in documents]
    assert opened == [compression]
    assert list(source.read(0, positions[1])) == list(source.read(0, positions[1])) == found[:1]


@pytest.mark.parametrize("compression", COMPRESS)
def test_members_are_jumped_to(tmp_path, compression, opened, monkeypatch):
    monkeypatch.setattr(streams, "POINT_SPACING", 1)
    documents = [Document(f"d{number}", f"text {number} " * 50) for number in range(200)]
    data = as_lines(documents)
    size = len(data) // 50
    path = tmp_path / "corpus.jsonl"
    path.write_bytes(b"".join(COMPRESS[compression](data[i : i + size]) for i in range(0, len(data), size)))
    (source,) = open_corpus([path], CorpusConfig()).sources
    records = list(source.scan(Counter()))
    assert len(source.spec["file"]["points"]) > 45
    opened.clear()
    (last,) = source.read(records[-1].position, None)
    assert last == documents[-1]
    assert len(opened) <= 2


def test_two_readers_of_one_source_do_not_disturb_each_other(write, sources):
    documents = [Document(f"d{number}", "text") for number in range(5000)]
    (source,) = sources(write("c.jsonl.gz", gzip.compress(as_lines(documents))))
    positions = [record.position for record in source.scan(Counter())]
    first, second = source.read(0, None), source.read(positions[2500], None)
    pairs = list(zip(first, second, strict=False))
    assert [pair[0] for pair in pairs] == documents[:2500]
    assert [pair[1] for pair in pairs] == documents[2500:]
    assert list(source.read(positions[4999], None)) == documents[4999:]


def test_a_file_that_shrank_is_noticed_when_it_is_read(write, sources):
    path = write("c.jsonl", as_lines([Document("a", "x"), Document("b", "y")]))
    (source,) = sources(path)
    last = [record.position for record in source.scan(Counter())][-1]
    path.write_bytes(b"{}")
    with pytest.raises(
        CorpusError, match=r"c\.jsonl: the file has 2 bytes of text, but a record .* The file has changed"
    ):
        list(source.read(last, None))


@pytest.mark.parametrize("kind", COMPRESS)
def test_damaged_compression_is_refused_with_its_place(write, refusal, kind):
    wrap = COMPRESS[kind]
    data = wrap("".join(f'{{"id": "{n}", "text": "{n * 7919}"}}\n' for n in range(30_000)).encode())
    assert f"the file ends in the middle of its {kind} stream" in refusal(write("cut", data[: len(data) // 2]))
    assert f"is followed by bytes that are not {kind}" in refusal(write("tail", data + b"some other bytes"))
    # gzip finds damage by its checksum at the end, the others where the damage is.
    place = len(data) - 8 if kind == "gzip" else len(data) // 2
    broken = data[:place] + bytes(8 if kind == "gzip" else 200) + data[place + 200 :]
    assert f"of the decompressed text: the {kind} stream is damaged" in refusal(write("broken", broken))


def test_odd_but_valid_beginnings_and_ends(write, documents):
    frame = b"\x50\x2a\x4d\x18" + (4).to_bytes(4, "little") + b"size"
    for name, data in {
        "a skippable frame comes first": frame + zstandard.compress(RECORD.encode()),
        "zeros pad the end": gzip.compress(RECORD.encode()) + bytes(1000),
    }.items():
        assert len(documents(write("c", data))) == 1, name


def test_invalid_utf16_is_refused(write, refusal):
    assert "invalid UTF-16-LE" in refusal(write("c", b"\xff\xfe" + RECORD.encode("utf-16-le") + b"\x00\xd8{\0"))
    assert "invalid UTF-16-LE" in refusal(write("c", b"\xff\xfe" + RECORD.encode("utf-16-le") + b"{"))


@pytest.mark.parametrize("compression", COMPRESS)
def test_blocks_are_small_however_much_a_file_decompresses_to(tmp_path, compression):
    path = tmp_path / "bomb"
    path.write_bytes(COMPRESS[compression](b"x" * (24 << 20)))
    stream = streams.ByteStream(streams.TextFile(str(path), "bomb", compression))
    blocks = []
    while block := stream.read():
        blocks.append(len(block))
    stream.close()
    assert sum(blocks) == 24 << 20
    assert max(blocks) <= 1 << 20
