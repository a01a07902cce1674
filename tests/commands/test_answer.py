"""The commands ``answer`` and ``eval``."""

import json

import pytest


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
    assert not (tmp_path / "answers.jsonl.part").exists()
    again = run(*arguments, *short, "--run", tmp_path / "run", "--answers", tmp_path / "answers.jsonl")
    assert again.exit_code == 0, again.output
    limited = run(*arguments, *short, "-n", 1, "--codec", "fp32", "--stage", "hidden", "--no-text", "--json")
    values = json.loads(limited.stdout)
    assert [row["condition"] for row in values["rows"]] == ["none", "stored", "recoded"]
    assert values["rows"][1]["kl"] == 0
    assert f"{values['rows'][1]['nll']:.3f}" == rows[1].split()[-2]


def test_answer_and_eval_of_its_file(folder, run, tmp_path):
    lines = [{"_id": f"q{n}", "text": f"What is T{n}?", "answer": "a city", "doc_ids": [f"d{n}"]} for n in range(4)]
    questions = tmp_path / "queries.jsonl"
    questions.write_text("".join(json.dumps(line) + "\n" for line in lines))
    made = "answer", folder / "store", "-q", questions, "-k", folder / "checkpoint"
    short = "--max-new-tokens", 3, "--dtype", "float32"
    found = run(*made, *short, "--search", "-n", 2, "-o", tmp_path / "found.jsonl", "--json")
    assert found.exit_code == 0, found.output
    report = json.loads(found.stdout)
    assert (report["questions"], report["documents_from"], report["failed"]) == (4, "search", [])
    assert report["form"] == "JSON lines: _id, text, answer, doc_ids"
    again = run(*made, *short, "--search", "-n", 2, "-o", tmp_path / "found.jsonl")
    assert again.exit_code == 0
    assert "finished before: 4 questions (JSON lines: _id, text, answer, doc_ids)" in again.stdout
    other = run(*made, "--max-new-tokens", 2, "-o", tmp_path / "found.jsonl")
    assert other.exit_code == 2
    assert "other settings: documents_from 'search', not 'questions'; documents 2, not None; " in other.stderr
    assert "max_new_tokens 3, not 2" in other.stderr

    (tmp_path / "run").write_text("q0 Q0 d0 1 1 x\nq0 Q0 d0 2 1 x\nq1 Q0 zz 1 1 x\nq2 Q0 d2 1 2 x\nq3 Q0 d3 1 1 x\n")
    listed = run(*made, *short, "--run", tmp_path / "run", "-o", tmp_path / "listed.jsonl", "--token-budget", 50)
    assert listed.exit_code == 3, listed.output
    assert "4 questions (JSON lines" in listed.stdout
    assert "documents from run" in listed.stdout
    assert "lines that repeat a document of their query: 1" in listed.stderr
    assert "the store holds no memory of 1 document: 'zz'." in listed.stderr
    assert "1 question without an answer, each with its error: 'q1'." in listed.stderr
    assert [json.loads(line)["id"] for line in (tmp_path / "listed.jsonl").read_text().splitlines()] == [
        "q0",
        "q1",
        "q2",
        "q3",
    ]

    scored = run("eval", tmp_path / "found.jsonl", "-q", questions)
    assert scored.exit_code == 0, scored.output
    names = [line.split()[0] for line in scored.stdout.splitlines()[:-1]]
    assert names == ["measure", "match", "EM", "F1", "R@1", "R@5", "RR", "nDCG@10"]
    assert "4 questions; documents of the answers judged by the questions; JSON lines" in scored.stdout
    (tmp_path / "qrels").write_text("q0 0 d0 1\n")
    arguments = "--qrels", tmp_path / "qrels", "--run", tmp_path / "run", "--measure", "RR@3", "--json"
    judged = json.loads(run("eval", tmp_path / "listed.jsonl", "-q", questions, *arguments).stdout)
    assert (judged["retrieval"], judged["judged"], judged["failed"]) == ({"RR@3": 1.0}, 1, 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("eval", "{}/store", "-q", "{}/nothing"), "No such file"),
        (("eval", "{}/store", "-q", "{}/corpus.jsonl"), "line 1, id 'd0': the question has no reference answer"),
        (("eval", "{}/store", "-q", "{}/corpus.jsonl", "--measure", "RR"), "option of a file of answers"),
        (("eval", "{}/corpus.jsonl", "-q", "{}/corpus.jsonl"), "option of a store"),
        (("answer", "{}/store", "-q", "{}/nothing", "-o", "{}/a"), "No such file"),
        (("answer", "{}/store", "-q", "{}/corpus.jsonl", "-o", "{}/no/a"), "there is no folder"),
        (("eval", "{}/store", "-q", "{}/corpus.jsonl", "--answers", "{}/no/a"), "there is no folder"),
        (("eval", "{}/store", "-q", "{}/corpus.jsonl", "--answers", "{}/corpus.jsonl"), "so it is not overwritten"),
        (("eval", "{}/store", "-q", "{}/corpus.jsonl", "-n", "0"), "--documents"),
    ],
)
def test_bad_input(folder, run, arguments, message):
    shown = run(*(argument.format(folder) for argument in arguments), "-k", folder / "checkpoint")
    assert shown.exit_code == 2, shown.output
    assert message in shown.stderr
    assert "Traceback" not in shown.stderr
