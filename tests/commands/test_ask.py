"""The command ``ask``."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pisco_index import Decoder, Index, Reader
from pisco_index.cli import app
from pisco_index.errors import MissingTextError


@pytest.fixture
def ask(folder, run):
    """The command ``ask`` over the shared store, with short answers."""
    return lambda *options: run("ask", folder / "store", *options, "-k", folder / "checkpoint", "--max-new-tokens", 4)


def test_a_named_document_is_read(ask):
    arguments = ("What is it?", "--doc", "d3", "--doc", "d1")
    shown = ask(*arguments)
    assert shown.exit_code == 0, shown.output
    values = json.loads(ask(*arguments, "--json").stdout)
    assert shown.stdout == f"{values['answer']}\n"
    assert values["memory_tokens"] > 0
    assert [(each["doc_id"], each["title"], each["score"]) for each in values["documents"]] == [
        ("d3", "T3", None), ("d1", "T1", None)
    ]  # fmt: skip


def test_without_documents_the_store_is_searched(ask):
    values = json.loads(ask("Which river is T7?", "-n", 2, "--show-text", "--json").stdout)
    best, second = values["documents"]
    assert (best["doc_id"], best["title"]) == ("d7", "T7")
    assert best["score"] > second["score"] > 0
    assert best["text"].startswith("T7\nthe river and the city")
    shown = ask("Which river is T7?", "-n", 2).stdout.splitlines()
    assert shown[0] == values["answer"]
    assert [line.split()[1:] for line in shown[1:]] == [["d7", "T7"], [second["doc_id"], second["title"]]]


def test_a_run_names_the_documents_of_a_query(ask, tmp_path):
    (tmp_path / "run").write_text("q1 Q0 d2 1 1e1 x\n\nq1 Q0 d5 2 9.5 x\nq2 Q0 d6 1 1 x\n")
    run = ("why?", "--run", tmp_path / "run")
    values = json.loads(ask(*run, "--query", "q1", "--json").stdout)
    assert [(each["doc_id"], each["score"]) for each in values["documents"]] == [("d2", 10), ("d5", 9.5)]
    assert "has 2 queries: 'q1', 'q2'. Name one (--query)" in ask(*run).stderr
    assert "no query 'q3'" in ask(*run, "--query", "q3").stderr


def test_documents_of_a_run_that_the_store_lacks_are_named(ask, tmp_path):
    (tmp_path / "run").write_text("q Q0 d2 1 3 x\nq Q0 zz 2 2 x\nq Q0 d5 3 1 x\n")
    shown = ask("why?", "--run", tmp_path / "run", "--json")
    assert [each["doc_id"] for each in json.loads(shown.stdout)["documents"]] == ["d2", "d5"]
    assert "does not hold 1 document of the run: 'zz'." in shown.stderr
    (tmp_path / "run").write_text("q Q0 zz 1 3 x\n")
    shown = ask("why?", "--run", tmp_path / "run")
    assert shown.exit_code == 2
    assert "no document that the run lists for the query: 'zz'" in shown.stderr


def test_a_text_that_is_not_kept_is_said_to_be_so(ask, monkeypatch):
    def refuse(*_, **__):
        raise MissingTextError("no text")

    monkeypatch.setattr(Reader, "texts", refuse)
    assert ask("why?", "--doc", "d3", "--show-text").stdout.splitlines()[1:] == ["d3  T3", "(not kept)", ""]
    assert json.loads(ask("why?", "--doc", "d3", "--show-text", "--json").stdout)["documents"][0]["text"] is None


def test_lines_of_the_input_are_answered_with_one_decoder(folder, monkeypatch):
    load, loads = Decoder.load, []
    monkeypatch.setattr(Decoder, "load", lambda *given, **named: loads.append(1) or load(*given, **named))
    lines = "Which river is T7?\n\nthe of\nWhich river is T3?\n"
    words = ["ask", folder / "store", "-k", folder / "checkpoint", "-n", 1, "--max-new-tokens", 2, "--json"]
    shown = CliRunner().invoke(app, list(map(str, words)), input=lines)
    assert shown.exit_code == 3, shown.output
    found = [json.loads(line)["documents"][0]["doc_id"] for line in shown.stdout.splitlines()]
    assert found == ["d7", "d3"]
    assert "found no document" in shown.stderr
    assert len(loads) == 1


def test_documents_that_were_left_out_are_no_sources(ask, monkeypatch):
    answer = Index.answer

    def without_the_last(index, *given, **named):
        (answered,) = answer(index, *given, **named)
        return [replace(answered, documents=answered.documents[:-1], missing=answered.documents[-1:])]

    monkeypatch.setattr(Index, "answer", without_the_last)
    shown = ask("What is it?", "--doc", "d3", "--doc", "d1", "--json")
    assert [each["doc_id"] for each in json.loads(shown.stdout)["documents"]] == ["d3"]
    assert "no memory of 'd1'" in shown.stderr


def test_control_characters_of_a_model_do_not_reach_the_terminal(ask, monkeypatch):
    monkeypatch.setattr(Decoder, "answer_batch", lambda *_, **__: ["a\x1b[2Jb\nc é"])
    assert ask("why?", "--doc", "d1").stdout == "a\\x1b[2Jb\nc é\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("why?", "--doc", "zz"), "'zz'"),
        (("why?", "-n", "0"), "--hits"),
        (("",), "question is empty"),
        (("why?", "--query", "q1"), "--run"),
        (("why?", "--doc", "d1", "--run", os.devnull), "not both"),
        (("why?", "--doc", "d1", "--hits", "5"), "--doc or --hits, not both"),
        (("why?", "--run", "nothing"), "cannot be read"),
    ],
)
def test_bad_input(ask, arguments, message):
    shown = ask(*arguments)
    assert shown.exit_code == 2, shown.output
    assert message in shown.stderr
    assert "Traceback" not in shown.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_on_a_terminal_it_asks_for_questions(folder):
    # Windows has no such module.
    import pty

    leader, follower = pty.openpty()
    command = [Path(sys.executable).with_name("pisco-index"), "ask", folder / "store", "-k", folder / "checkpoint"]
    process = subprocess.Popen([*command, "--max-new-tokens", "2", "-n", "1"], stdin=follower, stdout=subprocess.PIPE)
    os.write(leader, b"Which river is T7?\n\x04")
    shown, _ = process.communicate(timeout=120)
    os.close(leader)
    os.close(follower)
    assert process.returncode == 0
    assert b"d7  T7" in shown
