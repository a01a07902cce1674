"""Lists of document ids in text files."""

import codecs
import gzip
import os
import threading

import pytest

from pisco_index.corpus.ids import read_ids
from pisco_index.errors import InputError


def test_ids_are_the_lines_of_a_file(write):
    assert read_ids(write("ids.txt", "ID#1\r\n\nZürich 日本\na b\n")) == ["ID#1", "Zürich 日本", "a b"]
    assert read_ids(write("ids.txt", '[1]\n{"a"}\n<b>\nPAR1\nBZh\n')) == ["[1]", '{"a"}', "<b>", "PAR1", "BZh"]
    odd = "a\u2028b\nc\u0085d\fe\rf\n g \n"
    assert read_ids(write("ids.txt", odd)) == ["a\u2028b", "c\u0085d\fe\rf", " g "]


def test_ids_are_read_in_the_encodings_of_a_corpus(write):
    joined = "\ufeffa1\n\ufeffb1\nc\ufeff1"
    for data in (
        joined.encode(),
        gzip.compress(joined.encode()),
        codecs.BOM_UTF16_BE + joined.encode("utf-16-be"),
        joined.encode("utf-16-le"),
    ):
        assert read_ids(write("ids.txt", data)) == ["a1", "b1", "c\ufeff1"]


def test_ids_come_from_a_pipe(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    writer = threading.Thread(target=path.write_text, args=("a\nb\n",))
    writer.start()
    assert read_ids(path) == ["a", "b"]
    writer.join()


def test_a_file_without_ids_is_refused(write, tmp_path):
    for data, message in (
        (b"\n\n", "holds no id"),
        (b"\xff\n", "line 1: invalid UTF-8"),
        (b"a\rb\r", "end in carriage returns"),
    ):
        with pytest.raises(InputError, match=message):
            read_ids(write("ids.txt", data))
    with pytest.raises(InputError, match=r"cannot be read \(No such file"):
        read_ids(tmp_path / "none")
