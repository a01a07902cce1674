"""Formats are recognised from the bytes, and a file that is not a corpus is named for what it is."""

import bz2
import gzip
import io
import pickle
import tarfile
import zipfile

import pytest
import zstandard

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
        (b"%PDF-1.7\n", "the file is a PDF"),
        (b"<!DOCTYPE html>\n<html>", "the file is HTML"),
        (b"<html><body>404", "the file is HTML"),
        (
            b"<?xml version='1.0'?><rss><page/></rss>",
            "the file is XML with the root element <rss>, not a MediaWiki export",
        ),
        (b"<!-- a note --><!DOCTYPE a [<!ENTITY b 'c'>]><TEI/>", "the file is XML with the root element <TEI>"),
        (tar_of(b"x"), "the file is a tar archive"),
        (gzip.compress(tar_of(b"x"), mtime=0), "the gzip file contains a tar archive"),
        (gzip.compress(bz2.compress(b"x"), mtime=0), "the gzip file contains a bz2 file"),
        (zip_of("corpus.jsonl"), "the file is a zip archive. Unpack it"),
        (zip_of("archive/data.pkl"), "the file is torch weights"),
        (zip_of("word/document.xml"), "the file is an Office document"),
        (pickle.dumps({}), "the file is a Python pickle"),
        ((100).to_bytes(8, "little") + b'{"__metadata__":{}}', "the file is safetensors weights"),
        (b"\xfd7zXZ\0\0\4", "the file is xz-compressed"),
        (b"SQLite format 3\0", "the file is an SQLite database"),
        (b"version https://git-lfs.github.com/spec/v1\n", "the file is a Git LFS pointer"),
        (b"Once upon a time\nthere was a corpus.\n", "the file is plain text that begins 'Once upon a time'"),
        (b"id,text\n1,x\n", "the file looks comma-separated: it begins 'id,text'"),
        (b"\x00\x01\x02\x03" * 8, "the file is binary data"),
        ("{}".encode("utf-32"), "the text is UTF-32"),
        (RECORD.encode("utf-16-le"), "the text is UTF-16 without a byte order mark"),
    ],
)
def test_a_file_that_is_not_a_corpus_is_named(write, refusal, data, message):
    assert f"thing: {message}" in refusal(write("thing", data))


@pytest.mark.parametrize("wrap", [bytes, gzip.compress, bz2.compress, zstandard.compress])
def test_names_do_not_matter(write, documents, wrap):
    for name in ("corpus", "corpus.gz", "corpus.parquet", "corpus.tsv"):
        assert [document.doc_id for document in documents(write(name, wrap(RECORD.encode())))] == ["a"]
