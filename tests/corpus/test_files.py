"""The data files of a path: their order, their names, and the paths that have none."""

import errno
import gzip
import json
import os
import socket
from pathlib import Path

import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest

from pisco_index.configs import BuildConfig
from pisco_index.configs.corpus import CorpusConfig
from pisco_index.corpus import open_corpus
from pisco_index.errors import CorpusError
from pisco_index.pipeline.watch.events import EventLog
from pisco_index.store.table.addresses import TABLES

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


def left_out(*paths):
    return {each.name: each.reason for each in open_corpus(paths, CorpusConfig()).left_out}


def test_files_without_data_are_skipped(write, documents):
    for name in ("README.md", ".gitattributes", "_SUCCESS", ".cache/x.lock", "dump-multistream-index.txt.bz2"):
        write(f"20231101.en/{name}", "no data")
    path = write("20231101.en/train-00001-of-00002.jsonl", RECORD).parent
    assert [document.doc_id for document in documents(path)] == ["a"]


def test_paths_without_data_are_refused(tmp_path, write, refusal):
    assert "there is no such file or folder" in refusal(tmp_path / "missing")
    for uri in ("s3://bucket/corpus", "hf://datasets/x/y", "https://example.org/c.jsonl"):
        assert "files are read from and written to local or mounted paths" in refusal(uri)
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


def test_a_file_named_as_data_is_data_whatever_else_its_name_says(write, documents):
    names = (
        "notice.jsonl",
        "_index.ndjson",
        "LICENSE.json",
        "state.json",
        "dataset_info.json",
        "copying/md5sums.jsonl",
    )
    for name in names:
        write(f"pages/{name}", f'{{"id": "{name}", "text": "t"}}\n')
    write("pages/citation.jsonl.gz", gzip.compress(RECORD.encode()))
    folder = write("pages/README", "no data").parent
    assert sorted(document.doc_id for document in documents(folder)) == sorted(["a", *names])
    assert left_out(folder) == {"pages/README": "no data by its name"}


def test_what_is_left_out_is_named_with_the_reason(write):
    for name in ("README.md", "LICENSE", "x.lock", "_SUCCESS", "_tmp/a.jsonl", "notes.txt.md5", ".hidden"):
        write(f"c/{name}", "no data")
    write("c/dataset_infos.json", '{"default": {"features": {}}}')
    write("c/empty.jsonl", "\n")
    write("c/marks.tsv", "\n\ufeff")
    folder = write("c/a.jsonl", RECORD).parent
    by_name = "no data by its name"
    assert left_out(folder) == {
        **{f"c/{name}": by_name for name in ("README.md", "LICENSE", "x.lock", "_SUCCESS", "notes.txt.md5")},
        "c/_tmp": "a folder whose name begins with _",
        "c/dataset_infos.json": "a description of a data set",
        "c/empty.jsonl": "empty",
        "c/marks.tsv": "empty",
    }


def test_a_file_may_begin_with_a_blank_line_but_not_with_64_kib_of_them(write, documents, refusal):
    text = "word " * 20_000
    for name, content in (("a.tsv", f"a\t{text}\nb\ttext\n"), ("a.jsonl", json.dumps({"id": "a", "text": text}))):
        found = documents(write(name, f"\n{content}\n"), columns=["id", "text"] if name == "a.tsv" else None)
        assert (found[0].doc_id, found[0].text.strip()) == ("a", text.strip())
    assert "the first 65,536 bytes are blank lines" in refusal(write("b.tsv", "\n" * 70_000 + "id\ttext\na\tb\n"))


def test_what_this_program_wrote_is_left_out(write, tmp_path, refusal):
    folder = write("c/a.jsonl", RECORD).parent
    for table in TABLES:
        write(f"c/index/{table}.lance/data/x.lance", b"\0\1")
    write("c/begun/memory.lance/data/x.lance", b"\0\1")
    write("c/begun/.build.lock", "")
    write("c/memory/manifest.json", '{"store": {}, "parts": [], "manifest_version": 1}')
    write("c/memory/part-00000.parquet", b"PAR1")
    write("c/checkpoint/config.json", '{"model_type": "PISCO"}')
    write("c/checkpoint/connector.pt", b"PK\3\4")
    write("c/trained/training/settings.json", '{"decoder_state": "", "decoder_base": {}, "data": []}')
    write("c/trained/training/records.arrow", b"ARROW1")
    write("c/answers.jsonl", '{"id": "q"}\n')
    write("c/answers.jsonl.settings.json", '{"pisco_index": "1", "store": "", "questions": ""}')
    write("c/answers.jsonl.part", '{"id": "r"}\n')
    EventLog(folder / "events.jsonl").began("index", BuildConfig())
    store, answers = "a store of pisco-index", "answers of pisco-index"
    assert left_out(folder) == {
        "c/index": store,
        "c/begun": store,
        "c/memory": "an export of pisco-index",
        "c/checkpoint": "a model or checkpoint",
        "c/trained/training": "a training of pisco-index",
        "c/answers.jsonl": answers,
        "c/answers.jsonl.settings.json": answers,
        "c/answers.jsonl.part": answers,
        "c/events.jsonl": "events of a build",
    }
    assert "index: this is a store of pisco-index, and no corpus" in refusal(folder / "index")


def test_one_file_under_two_names_is_read_once(write, documents, tmp_path):
    folder = write("c/2024/05.jsonl", RECORD).parent.parent
    (folder / "2024/latest.jsonl").symlink_to("05.jsonl")
    (folder / "2024/up").symlink_to("..")
    (folder / "2023").symlink_to("2024")
    os.link(folder / "2024/05.jsonl", folder / "2024/06.jsonl")
    assert [source.name for source in open_corpus([folder], CorpusConfig()).sources] == ["c/2024/05.jsonl"]
    assert left_out(folder) == {
        "c/2023": "a link to a folder that is read anyway, or that leads upwards",
        "c/2024/up": "a link to a folder that is read anyway, or that leads upwards",
        "c/2024/06.jsonl": "the same file as c/2024/05.jsonl",
        "c/2024/latest.jsonl": "the same file as c/2024/05.jsonl",
    }
    # As in a cache of data sets: the target is elsewhere, and the links have the names.
    blob = write("blobs/5f2e", '{"id": "b", "text": "t"}\n')
    (tmp_path / "snapshot").mkdir()
    for name in ("x.jsonl", "y.jsonl"):
        (tmp_path / "snapshot" / name).symlink_to(blob)
    assert [source.name for source in open_corpus([tmp_path / "snapshot"], CorpusConfig()).sources] == [
        "snapshot/x.jsonl"
    ]
    assert len(documents(tmp_path / "snapshot")) == 1


def test_two_names_of_one_file_in_two_arguments(write):
    path = write("a/x.jsonl", RECORD)
    link = path.with_name("y.jsonl")
    link.symlink_to(path)
    with pytest.raises(CorpusError, match=r"y\.jsonl: the file is given twice: a link makes x\.jsonl the same file"):
        open_corpus([path, link], CorpusConfig())
    assert left_out(path, path.parent / "[y]*") == {"a/y.jsonl": "the same file as x.jsonl"}


def test_links_to_folders_that_link_to_each_other_end(write, tmp_path):
    for name in "abcdefgh":
        write(f"outside/{name}/{name}.jsonl", f'{{"id": "{name}", "text": "t"}}\n')
        for other in "abcdefgh":
            (tmp_path / "outside" / name / f"to-{other}").symlink_to(tmp_path / "outside" / other)
    write("c/x.jsonl", RECORD)
    (tmp_path / "c/in").symlink_to(tmp_path / "outside/a")
    assert len(open_corpus([tmp_path / "c"], CorpusConfig()).sources) == 9


def test_an_entry_that_cannot_be_read_is_never_skipped(write, refusal, tmp_path, monkeypatch):
    def refused(**config):
        message = refusal(tmp_path / "c", **config)
        assert message == refusal(tmp_path / "c", on_error="skip"), "a file that is skipped would be pruned"
        return message

    write("c/a.jsonl", RECORD)
    link = tmp_path / "c/b.jsonl"
    link.symlink_to("../blobs/5f2e")
    assert "b.jsonl: the link points to nothing: ../blobs/5f2e is not there" in refused()
    assert "b.jsonl: the link points to nothing" in refusal(link)
    link.unlink()
    link.symlink_to("b.jsonl")
    assert "b.jsonl: the link points to nothing: b.jsonl" in refused()
    link.unlink()
    os.mkfifo(link)
    assert "b.jsonl: this is a pipe, a socket or a device, and no file" in refused()
    link.unlink()
    monkeypatch.chdir(tmp_path / "c")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("s")
        assert "c/s: this is a pipe, a socket or a device, and no file" in refused()
    Path("s").unlink()
    # A dangling link that would not be read does not matter.
    Path("README.md").symlink_to("none")
    Path("shut").mkdir()
    names = os.listdir

    def listdir(folder):
        if Path(folder).name == "shut":
            raise PermissionError(errno.EACCES, "Permission denied")
        return names(folder)

    monkeypatch.setattr(os, "listdir", listdir)
    assert "shut: the folder cannot be listed (Permission denied)" in refused()


def test_a_name_that_is_not_utf8_is_read_and_can_be_shown(write, documents, tmp_path):
    folder = write(os.fsdecode(b"c/caf\xe9.jsonl"), RECORD).parent
    (source,) = open_corpus([folder], CorpusConfig()).sources
    assert source.name == "c/caf\\xe9.jsonl"
    assert [document.doc_id for document in documents(folder)] == ["a"]
    for number, suffix in enumerate((".parquet", ".arrow")):
        folder = tmp_path / str(number)
        folder.mkdir()
        path = folder / os.fsdecode(b"caf\xe9" + suffix.encode())
        table = pa.table({"id": ["b"], "text": ["t"]})
        pq.write_table(table, folder / "x") if number == 0 else feather.write_feather(table, folder / "x")
        (folder / "x").rename(path)
        assert [document.doc_id for document in documents(folder)] == ["b"]


def test_a_pattern_is_read_as_its_folder_would_be(write, tmp_path):
    for name in ("a.jsonl", "b.jsonl", "b.tsv", "README.md", "x/c.jsonl", "x/d.jsonl"):
        write(f"data/{name}", f'{{"id": "{name}", "text": "t"}}\n')

    def names(pattern):
        return [source.name for source in open_corpus([f"{tmp_path}/data/{pattern}"], CorpusConfig()).sources]

    assert names("*.jsonl") == ["data/a.jsonl", "data/b.jsonl"]
    assert names("**/*.jsonl") == ["data/a.jsonl", "data/b.jsonl", "data/x/c.jsonl", "data/x/d.jsonl"]
    assert names("[ax]*") == ["data/a.jsonl", "data/x/c.jsonl", "data/x/d.jsonl"]
    assert names("**") == names("*") == ["data/a.jsonl", "data/b.jsonl", "data/b.tsv", *names("**/[cd]*")]
