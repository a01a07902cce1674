"""The command ``retrieve``."""

import json

import pytest

QUESTIONS = "a\twhere is the river and T3\nb\tzebra\nc\tthe of\n"


@pytest.fixture
def topics(tmp_path):
    path = tmp_path / "topics.tsv"
    path.write_text(QUESTIONS)
    return path


def test_retrieve_writes_a_run_and_reports_questions_without_documents(folder, run, topics, tmp_path):
    out = tmp_path / "run.trec"
    shown = run("retrieve", folder / "store", "-q", topics, "-o", out, "--hits", 4, "--tag", "mine")
    assert shown.exit_code == 0, shown.output
    lines = [line.split() for line in out.read_text().splitlines()]
    assert [(line[0], line[3], line[5]) for line in lines] == [("a", str(rank), "mine") for rank in (1, 2, 3, 4)]
    assert lines[0][2] == "d3"
    assert f"{out}: 4 documents for 3 questions" in shown.stdout
    assert "1 question without a matching document: 'b'" in shown.stdout
    assert "1 question without a word that is searched (stop words only): 'c'" in shown.stdout


def test_retrieve_has_the_names_of_pyserini(folder, run, topics, tmp_path):
    names = ("--topics", topics, "--output", tmp_path / "run", "--hits", 2, "--threads", 2)
    report = json.loads(run("retrieve", folder / "store", *names, "--json").stdout)
    assert (report["questions"], report["hits"], report["without_hits"]) == (3, 2, ["b", "c"])


def test_retrieve_refuses_a_store_without_an_index(folder, build, run, topics, tmp_path):
    assert build("-c", "beir", "-o", tmp_path / "plain", "--no-index").exit_code == 0
    refused = run("retrieve", tmp_path / "plain", "-q", topics, "-o", tmp_path / "run")
    assert refused.exit_code == 2
    assert f"pisco-index index {tmp_path / 'plain'} CORPUS" in refused.stderr
