"""A corpus of several files, its configured format, and sources of other versions."""

import pytest

from pisco_index.corpus import open_source
from pisco_index.errors import CorpusError

RECORD = '{"id": "a", "text": "t"}\n'


def test_a_folder_of_two_formats_is_refused(write, refusal):
    write("beir/qrels/test.tsv", "query-id\tcorpus-id\tscore\n1\ta\t1\n")
    write("beir/c.tsv", "1\tx\n")
    message = refusal(write("beir/corpus.jsonl", RECORD).parent)
    assert "beir/corpus.jsonl (json)" in message
    assert "beir/c.tsv (tsv)" in message


def test_the_configured_format_must_be_the_files(write, refusal, documents):
    path = write("c.jsonl", RECORD)
    assert "c.jsonl: the format of the file is jsonl, but it is set to parquet" in refusal(path, format="parquet")
    assert len(documents(path, format="jsonl")) == 1
    assert len(documents(path, format="json")) == 1


def test_a_spec_of_another_version_is_refused():
    with pytest.raises(CorpusError, match="format 'stone tablets' of the plan is unknown"):
        open_source({"format": "stone tablets"})
