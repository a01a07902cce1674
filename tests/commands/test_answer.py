"""The commands ``ask`` and ``eval``."""

import json

import pytest

from pisco_index.reader.ask import Answer


def test_ask(folder, run):
    arguments = ("ask", folder / "store", "What is it?", "--doc", "d3", "--doc", "d1", "-k", folder / "checkpoint")
    shown = run(*arguments, "--max-new-tokens", 4)
    assert shown.exit_code == 0, shown.output
    values = json.loads(run(*arguments, "--max-new-tokens", 4, "--json").stdout)
    assert values["text"] in shown.stdout
    assert values["memory_tokens"] > 0


def test_control_characters_of_a_model_do_not_reach_the_terminal(folder, run, monkeypatch):
    answer = Answer("a\x1b[2Jb\nc é", prompt_tokens=9, memory_tokens=3)
    monkeypatch.setattr("pisco_index.reader.ask.ask", lambda *_, **__: answer)
    shown = run("ask", folder / "store", "why?", "--doc", "d1", "-k", folder / "checkpoint")
    assert shown.stdout == "a\\x1b[2Jb\nc é\n"


def test_eval(folder, run, tmp_path):
    lines = [
        {"id": f"q{n}", "question": "What is it?", "answer": "a city", "doc_ids": [f"d{n}", "d0"]} for n in range(4)
    ]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "run").write_text("".join(f"q{n} Q0 d{n} 1 1 x\n" for n in range(6)))
    arguments = ("eval", folder / "store", "-q", tmp_path / "q.jsonl", "-k", folder / "checkpoint")
    short = ("--max-new-tokens", 3, "--dtype", "float32")
    shown = run(*arguments, *short, "--run", tmp_path / "run", "--answers", tmp_path / "answers.jsonl")
    assert shown.exit_code == 0, shown.output
    header, *rows, note = shown.stdout.splitlines()
    assert header.split() == ["condition", "stage", "codec", "B/doc", "match", "%", "EM", "%", "F1", "%", "NLL", "KL"]
    assert [row.split()[:3] for row in rows] == [
        ["none", "-", "-"], ["stored", "hidden", "int8"],
        *(["recoded", "hidden", codec] for codec in ("fp32", "bf16", "bf16z", "int4", "klt3", "klt2")),
        *(["recoded", "embedding", codec] for codec in ("fp32", "bf16", "bf16z", "int8", "int4", "klt3", "klt2")),
    ]  # fmt: skip
    assert rows[1].split()[-1] == "0"
    assert note.startswith("4 questions, 4 documents; 2 of the run's queries are not among them; KL to ")
    assert len((tmp_path / "answers.jsonl").read_text().splitlines()) == 4 * len(rows)
    limited = run(*arguments, *short, "-n", 1, "--codec", "fp32", "--stage", "hidden", "--no-text", "--json")
    values = json.loads(limited.stdout)
    assert [row["condition"] for row in values["rows"]] == ["none", "stored", "recoded"]
    assert values["rows"][1]["kl"] == 0
    assert f"{values['rows'][1]['nll']:.3f}" == rows[1].split()[-2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("ask", "{}/store", "why?", "--doc", "d1", "--max-new-tokens", "0"), "max-new-tokens"),
        (("ask", "{}/store", "why?", "--doc", "zz"), "'zz'"),
        (("eval", "{}/store", "-q", "{}/nothing"), "cannot be read"),
        (("eval", "{}/store", "-q", "{}/corpus.jsonl"), "line 1: question must be a string"),
        (("eval", "{}/store", "-q", "{}/q", "--answers", "{}/no/a"), "there is no folder"),
        (("eval", "{}/store", "-q", "{}/q", "-n", "0"), "--documents"),
    ],
)
def test_bad_input(folder, run, arguments, message):
    shown = run(*(argument.format(folder) for argument in arguments), "-k", folder / "checkpoint")
    assert shown.exit_code == 2, shown.output
    assert message in shown.stderr
    assert "Traceback" not in shown.stderr
