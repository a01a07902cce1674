"""The data files of a path: their order, their names, and the paths that have none."""

import json

import pyarrow as pa
import pytest

from pisco_index.configs.corpus import CorpusConfig
from pisco_index.corpus import open_corpus
from pisco_index.errors import CorpusError

RECORD = '{"id": "a", "text": "t"}\n'


def save_to_disk(folder, texts, files=2):
    """Write a folder as ``datasets.Dataset.save_to_disk`` does."""
    folder.mkdir(parents=True)
    names = [f"data-{number:05}-of-{files:05}.arrow" for number in range(files)]
    for number, name in enumerate(names):
        table = pa.table({"id": [f"{number}-{i}" for i in range(len(texts))], "text": texts})
        with pa.ipc.new_stream(folder / name, table.schema) as writer:
            writer.write_table(table)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names]}))
    (folder / "dataset_info.json").write_text("{}")
    return folder


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


def test_files_without_data_are_skipped(write, documents):
    for name in ("README.md", ".gitattributes", "_SUCCESS", ".cache/x.lock", "dump-multistream-index.txt.bz2"):
        write(f"20231101.en/{name}", "no data")
    path = write("20231101.en/train-00001-of-00002.jsonl", RECORD).parent
    assert [document.doc_id for document in documents(path)] == ["a"]


def test_paths_without_data_are_refused(tmp_path, write, refusal):
    assert "there is no such file or folder" in refusal(tmp_path / "missing")
    for uri in ("s3://bucket/corpus", "hf://datasets/x/y", "https://example.org/c.jsonl"):
        assert "corpora are read from local or mounted paths" in refusal(uri)
    write("empty/README.md", "nothing")
    assert "the folder holds no data files" in refusal(tmp_path / "empty")
    assert "this is neither a file nor a folder" in refusal("/dev/null")


def test_a_file_is_read_once(write):
    path = write("c.jsonl", RECORD)
    with pytest.raises(CorpusError, match=r"c\.jsonl: the file is given twice"):
        open_corpus([path, path.parent], CorpusConfig())


def test_a_saved_data_set_is_read_in_the_order_of_its_rows(tmp_path, documents, refusal):
    folder = save_to_disk(tmp_path / "saved", ["x", "y"])
    assert [document.doc_id for document in documents(folder)] == ["0-0", "0-1", "1-0", "1-1"]
    (folder / "data-00001-of-00002.arrow").unlink()
    assert "data-00001-of-00002.arrow: the saved data set names this file, but it is missing" in refusal(folder)
    (folder / "state.json").write_text('{"_indices_files": [{"filename": "x"}]}')
    assert "the saved data set is a selection of rows" in refusal(folder)


def test_saved_splits_are_refused_by_name(tmp_path, refusal):
    save_to_disk(tmp_path / "all/train", ["x"])
    (tmp_path / "all/dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    message = refusal(tmp_path / "all")
    assert "splits 'train', 'test'" in message
    assert str(tmp_path / "all/train") in message
