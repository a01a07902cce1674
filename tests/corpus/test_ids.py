"""Lists of document ids in text files."""

import pytest

from pisco_index.corpus.ids import read_ids
from pisco_index.errors import InputError


def test_ids_are_the_lines_of_a_file(write):
    assert read_ids(write("ids.txt", "ID#1\r\n\nZürich 日本\na b\n")) == ["ID#1", "Zürich 日本", "a b"]


def test_a_file_without_ids_is_refused(write, tmp_path):
    for data, message in ((b"\n\n", "holds no id"), (b"\xff\n", "is not UTF-8 at byte 0")):
        with pytest.raises(InputError, match=message):
            read_ids(write("ids.txt", data))
    with pytest.raises(InputError, match="cannot be read: No such file"):
        read_ids(tmp_path / "none")
