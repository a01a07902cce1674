"""What is a corpus and what is not: told from the bytes, and said plainly."""

import bz2
import gzip
import io
import pickle
import tarfile
import zipfile

import pytest
import zstandard

from pisco_index.configs.corpus import CorpusConfig
from pisco_index.corpus import open_corpus, open_source
from pisco_index.errors import CorpusError

RECORD = '{"id": "a", "text": "t"}\n'


def archive(make):
    buffer = io.BytesIO()
    make(buffer)
    return buffer.getvalue()


def tar_of(data):
    def make(buffer):
        with tarfile.open(fileobj=buffer, mode="w") as tar:
            entry = tarfile.TarInfo("corpus.jsonl")
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))

    return archive(make)


def zip_of(name):
    def make(buffer):
        with zipfile.ZipFile(buffer, "w") as opened:
            opened.writestr(name, RECORD)

    return archive(make)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"%PDF-1.7\n", "a PDF"),
        (b"<!DOCTYPE html>\n<html>", "HTML"),
        (b"<html><body>404", "HTML"),
        (b"<?xml version='1.0'?><rss><page/></rss>", "XML whose root element is <rss>, no MediaWiki export"),
        (b"<!-- a note --><!DOCTYPE a [<!ENTITY b 'c'>]><TEI/>", "XML whose root element is <TEI>"),
        (tar_of(b"x"), "a tar archive"),
        (gzip.compress(tar_of(b"x")), "gzip of a tar archive"),
        (gzip.compress(bz2.compress(b"x")), "gzip of a bz2 file"),
        (zip_of("corpus.jsonl"), "a zip archive; unpack it"),
        (zip_of("archive/data.pkl"), "torch weights"),
        (zip_of("word/document.xml"), "an Office document"),
        (pickle.dumps({}), "a Python pickle"),
        ((100).to_bytes(8, "little") + b'{"__metadata__":{}}', "safetensors weights"),
        (b"\xfd7zXZ\0\0\4", "xz-compressed"),
        (b"SQLite format 3\0", "an SQLite database"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
        (b"Once upon a time\nthere was a corpus.\n", "plain text that begins 'Once upon a time'"),
        (b"\x00\x01\x02\x03" * 8, "binary data"),
        ("{}".encode("utf-32"), "UTF-32 text"),
        (RECORD.encode("utf-16-le"), "UTF-16 text without a byte order mark"),
    ],
)
def test_what_is_no_corpus_is_named(write, refusal, data, message):
    assert f"thing: {message}" in refusal(write("thing", data))


@pytest.mark.parametrize("wrap", [bytes, gzip.compress, bz2.compress, zstandard.compress])
def test_names_do_not_matter(write, documents, wrap):
    for name in ("corpus", "corpus.gz", "corpus.parquet", "corpus.tsv"):
        assert [document.doc_id for document in documents(write(name, wrap(RECORD.encode())))] == ["a"]


def test_a_skippable_frame_may_come_first(write, documents):
    frame = b"\x50\x2a\x4d\x18" + (4).to_bytes(4, "little") + b"size"
    assert len(documents(write("c.zst", frame + zstandard.compress(RECORD.encode())))) == 1


@pytest.mark.parametrize(
    ("wrap", "kind"), [(gzip.compress, "gzip"), (bz2.compress, "bz2"), (zstandard.compress, "zstd")]
)
def test_damaged_compression_is_told_with_its_place(write, refusal, wrap, kind):
    data = wrap("".join(f'{{"id": "{n}", "text": "{n * 7919}"}}\n' for n in range(30_000)).encode())
    assert f"the file ends in the middle of its {kind} stream" in refusal(write("cut", data[: len(data) // 2]))
    assert f"bytes that are not {kind}" in refusal(write("tail", data + b"some other bytes"))
    # gzip notices damage at its checksum, at the end; the others where it is.
    place = len(data) - 8 if kind == "gzip" else len(data) // 2
    broken = data[:place] + bytes(8 if kind == "gzip" else 200) + data[place + 200 :]
    assert "of the decompressed text: the" in refusal(write("broken", broken))


def test_zeros_after_the_end_are_padding(write, documents):
    assert len(documents(write("c.gz", gzip.compress(RECORD.encode()) + bytes(1000)))) == 1


def test_invalid_utf16_is_refused(write, refusal):
    assert "invalid UTF-16-LE" in refusal(write("c", b"\xff\xfe" + RECORD.encode("utf-16-le") + b"\x00\xd8{\0"))
    assert "invalid UTF-16-LE" in refusal(write("c", b"\xff\xfe" + RECORD.encode("utf-16-le") + b"{"))


def test_paths_that_are_none(tmp_path, write, refusal):
    assert "there is no such file or folder" in refusal(tmp_path / "missing")
    for uri in ("s3://bucket/corpus", "hf://datasets/x/y", "https://example.org/c.jsonl"):
        assert "corpora are read from local or mounted paths" in refusal(uri)
    write("empty/README.md", "nothing")
    assert "the folder holds no data files" in refusal(tmp_path / "empty")


def test_a_folder_of_two_formats_is_refused(write, refusal):
    write("beir/qrels/test.tsv", "query-id\tcorpus-id\tscore\n1\ta\t1\n")
    write("beir/c.tsv", "1\tx\n")
    path = write("beir/corpus.jsonl", RECORD).parent
    message = refusal(path)
    assert "beir/corpus.jsonl (json)" in message
    assert "beir/c.tsv (tsv)" in message


def test_a_file_is_read_once(write):
    path = write("c.jsonl", RECORD)
    with pytest.raises(CorpusError, match=r"c\.jsonl: given twice"):
        open_corpus([path, path.parent], CorpusConfig())


def test_files_are_in_order_and_named_from_the_folder_on(write, tmp_path):
    for name in ("b/2.jsonl", "b/1.jsonl", "a.jsonl", "c/x/y.jsonl", "_tmp/z.jsonl", ".hidden.jsonl", "MD5SUMS.txt"):
        write(f"corpus/{name}", RECORD)
    sources = open_corpus([tmp_path / "corpus"], CorpusConfig()).sources
    assert [source.name for source in sources] == [
        "corpus/a.jsonl",
        "corpus/b/1.jsonl",
        "corpus/b/2.jsonl",
        "corpus/c/x/y.jsonl",
    ]
    assert sources[0].spec["file"]["path"] == str(tmp_path / "corpus/a.jsonl")


def test_the_configured_format_must_be_the_files(write, refusal, documents):
    path = write("c.jsonl", RECORD)
    assert "c.jsonl: jsonl, but the format is set to parquet" in refusal(path, format="parquet")
    assert len(documents(path, format="jsonl")) == 1
    assert len(documents(path, format="json")) == 1


def test_a_spec_of_another_version_is_refused():
    with pytest.raises(CorpusError, match="format 'stone tablets' is unknown"):
        open_source({"format": "stone tablets"})


def test_unknown_bytes_are_not_read_as_lines(write, refusal):
    assert "plain text that begins 'id,text'" in refusal(write("c.csv", "id,text\n1,x\n"))
