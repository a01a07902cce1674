"""The command ``index``."""

import json
import shutil


def test_a_store_gets_its_index(build, run, folder, tmp_path):
    store = tmp_path / "store"
    assert build("-o", store, "-c", "beir", "--no-index").exit_code == 0
    assert "no index" in run("info", store).stdout
    refused = run("index", store)
    assert refused.exit_code == 2
    assert "pisco-index index" in refused.stderr
    assert "CORPUS" in refused.stderr
    corpus = folder / "corpus.jsonl"
    shown = run("index", store, corpus, "--language", "German", "--no-stem", "--no-stopwords")
    assert shown.exit_code == 0, shown.output
    assert "12 documents got their texts" in shown.stdout
    assert "search index made; 12 documents" in shown.stdout
    assert "12 documents indexed" in run("info", store).stdout
    assert "German, tokenizer simple, no stems, no stop words" in run("info", store).stdout
    again = json.loads(run("index", store, "--json").stdout)
    assert (again["action"], again["contents"], again["index"]["rows_indexed"]) == ("kept", None, 12)
    rebuilt = json.loads(run("index", store, "--rebuild", "--tokenizer", "icu", "--json").stdout)
    assert (rebuilt["action"], rebuilt["index"]["settings"]["tokenizer"]) == ("rebuilt", "icu")
    assert rebuilt["index"]["settings"]["language"] == "German"


def test_documents_that_stay_unsearchable_are_named(build, run, folder, tmp_path):
    store = tmp_path / "store"
    build("-o", store, "-c", "beir", "--no-index")
    lines = (folder / "corpus.jsonl").read_text().splitlines()
    record = json.loads(lines[1])
    changed = json.dumps(record | {"text": "something else"})
    (tmp_path / "corpus.jsonl").write_text("\n".join([changed, *lines[2:]]))
    ended = run("index", store, tmp_path / "corpus.jsonl")
    assert ended.exit_code == 3
    shown = ended.stdout
    assert f"1 document not in CORPUS, and not searchable: {json.loads(lines[0])['_id']!r}" in shown
    assert (
        f"1 document with another text in CORPUS, and not searchable until the next build: {record['_id']!r}" in shown
    )
    assert run("index", store, folder / "corpus.jsonl").exit_code == 0
    complete = run("index", store, folder / "corpus.jsonl")
    assert complete.exit_code == 0
    assert "no document lacks its text" in complete.stdout


def test_another_corpus_is_refused(build, run, tmp_path):
    store = tmp_path / "store"
    build("-o", store, "-c", "beir", "--no-index")
    (tmp_path / "corpus.jsonl").write_text(json.dumps({"_id": "stranger", "text": "something else"}))
    refused = run("index", store, tmp_path / "corpus.jsonl")
    assert refused.exit_code == 2
    assert "none of the 12 documents" in refused.stderr
    assert "--id-field" in refused.stderr


def test_a_store_without_documents_has_nothing_to_index(folder, run, tmp_path):
    store = shutil.copytree(folder / "store", tmp_path / "store")
    run("delete", store, *(f"d{n}" for n in range(12)))
    shown = run("index", store)
    assert shown.exit_code == 0, shown.output
    assert "no documents, and so nothing to index" in shown.stdout
