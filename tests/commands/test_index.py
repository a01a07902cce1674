"""The command ``index``."""

import json


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
    shown = run("index", store, tmp_path / "corpus.jsonl").stdout
    assert f"1 document not in CORPUS, and not searchable: {json.loads(lines[0])['_id']!r}" in shown
    assert (
        f"1 document with another text in CORPUS, and not searchable until the next build: {record['_id']!r}" in shown
    )
