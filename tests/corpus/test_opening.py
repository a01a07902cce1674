"""A corpus of several files, its configured format, and sources of other versions."""

from collections import Counter

import pytest

from pisco_index.corpus import open_source, taken_for
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


ODD_IDS = [
    "[2101.00001]",
    "<http://example.org/Heron>",
    "{0F8FAD5B-D9CB}",
    "<urn:isbn:1>",
    "PAR1",
    "ORCA",
    "BZh9",
    "Rar!x",
]


@pytest.mark.parametrize("doc_id", ODD_IDS)
@pytest.mark.parametrize("config", [{"format": "tsv"}, {}])
def test_ids_that_begin_like_another_format_are_ids(write, documents, doc_id, config):
    data = f"{doc_id}\tThe first draft.\nb\tA second one.\n"
    assert [document.doc_id for document in documents(write("c.tsv", data), **config)] == [doc_id, "b"]


@pytest.mark.parametrize("doc_id", ['{"a"}', '["a"]', "<page>", "<html>", "%PDF-x", "<?xml", "<!--a"])
def test_a_configured_format_is_not_overruled_by_the_first_bytes(write, documents, refusal, doc_id):
    path = write("c.tsv", f"{doc_id}\tThe first draft.\nb\tA second one.\n")
    assert documents(path, format="tsv")[0].doc_id == doc_id
    assert "c.tsv" in refusal(path)


def test_a_file_that_cannot_have_the_configured_format_is_refused(write, refusal):
    path = write("c.json", '[\n{"id": "a", "text": "t"}\n]\n')
    assert "The file looks like json, but its format is set to jsonl" in refusal(path, format="jsonl")
    assert "The file looks like json, but its format is set to mediawiki" in refusal(path, format="mediawiki")
    assert "If it is a table, set --format tsv" in refusal(write("c.tsv", '{"a"}\tb\n'))


def test_the_files_are_described_as_what_they_were_taken_for(write, sources):
    write("in/a.tsv", 'docno\ttext\n1\t"a ""b"""\n')
    write("in/b.tsv", "id\ttext\n2\tx\n")
    folder = write("in/c.tsv", "\ufeffid\ttext\n3\tx\n".encode("utf-16-le")).parent
    found = sources(folder)
    assert [len(list(source.scan(Counter()))) for source in found] == [1, 1, 1]
    assert taken_for([*(source.spec for source in found), found[1].spec]) == [
        "in/a.tsv: tab-separated, header, csv quotes, id=docno, text=text",
        "2 files from in/b.tsv on: tab-separated, header, no quoted cells, id=id, text=text",
        "in/c.tsv: tab-separated, header, no quoted cells, utf-16-le, id=id, text=text",
    ]
