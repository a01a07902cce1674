"""The command, as its users type it."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from pisco_index import BuildConfig, Reader
from pisco_index.cli import app
from pisco_index.pipeline.watch.progress import WorkerState
from pisco_index.pipeline.watch.running import StatusFile
from pisco_index.store import build_lock


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A checkpoint, a corpus and a store of it, all made by the command."""
    folder = tmp_path_factory.mktemp("cli")
    lines = [{"_id": f"d{n}", "title": f"T{n}", "text": "the river and the city " * (n + 1)} for n in range(12)]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert run("checkpoint", "new", folder / "checkpoint", "--tiny", "--rate", 8).exit_code == 0
    built = run("build", folder / "corpus.jsonl", "-k", folder / "checkpoint", "-o", folder / "store", "-c", "beir")
    assert built.exit_code == 0, built.output
    return folder


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_info(folder):
    shown = run("info", folder / "store")
    assert shown.exit_code == 0
    for word in ("documents", "memory tokens", "compression", "on disk", "fingerprint", "codec int8", "1 of 1 done"):
        assert word in shown.stdout
    values = json.loads(run("info", folder / "store", "--json").stdout)
    assert values["documents"] == 12
    assert values["shards_missing"] == []


def test_status(folder, tmp_path):
    shown = run("status", folder / "store")
    assert shown.exit_code == 0, shown.output
    for words in ("complete, not running", "1 of 1 done, 0 missing", "12 in the store, of 12 records", " ago"):
        assert words in shown.stdout, words
    values = json.loads(run("status", folder / "store", "--json").stdout)
    assert (values["complete"], values["running"], values["documents"]) == (True, False, 12)
    (line,) = run("status", folder / "store", "--json", "--watch").stdout.splitlines()
    assert json.loads(line) == values
    assert run("status", tmp_path / "none").exit_code == 2


def test_status_of_a_build_that_is_running_until_it_is_over(folder, tmp_path):
    store = shutil.copytree(folder / "store", tmp_path / "store")
    with build_lock(store):
        listener = StatusFile()
        listener.began(str(store), BuildConfig())
        listener.started(1, 0, {0: 100}, "Ray (auto), 2 workers")
        listener.pace.update([])
        listener.states = (
            WorkerState("[gpu-0]", "compressing", 0, 1234, 5678, 0.25),
            WorkerState("gpu-1", "starting", None, 0, 0),
        )
        listener.stopping()
        shown = run("status", store)
        assert shown.exit_code == 0, shown.output
        for words in (
            f"running: process {os.getpid()}",
            "in Ray (auto), 2 workers; stopping",
            "[gpu-0]",
            "0 (25%)",
            "1,234",
        ):
            assert words in shown.stdout, words
        looks = 0

        def end(seconds):
            nonlocal looks
            looks += 1
            assert seconds == 0.5
            (store / ".build.lock").rename(store / ".build.gone")

        with pytest.MonkeyPatch.context() as patched:
            patched.setattr("pisco_index.cli.time.sleep", end)
            watched = run("status", store, "--watch", "--every", 0.5, "--json")
        assert looks == 1
        assert [json.loads(line)["running"] for line in watched.stdout.splitlines()] == [True, False]
        listener.ended()


def test_a_build_is_watched(folder, tmp_path):
    arguments = ("build", folder / "corpus.jsonl", "-k", folder / "checkpoint", "-o", tmp_path / "store", "-c", "beir")
    watched = (*arguments, "--events", tmp_path / "events", "--metrics-port", 0)
    shown = run(*watched)
    assert shown.exit_code == 0, shown.output
    assert re.search(r"^metrics: http://127\.0\.0\.1:\d+/metrics$", shown.stderr, re.MULTILINE)
    events = [json.loads(line) for line in (tmp_path / "events").read_text().splitlines()]
    assert (events[0]["event"], events[-1]["event"], events[-1]["how"]) == ("began", "ended", "done")
    assert run(*watched).exit_code == 0
    runs = [json.loads(line)["run"] for line in (tmp_path / "events").read_text().splitlines()]
    assert len(set(runs)) == 2


def test_a_store_is_updated_emptied_of_documents_and_compacted(folder, tmp_path):
    lines = [{"_id": f"d{n}", "text": "the river and the city " * (n + 1)} for n in range(12)]
    corpus, store = tmp_path / "corpus.jsonl", tmp_path / "store"

    def build(*options):
        corpus.write_text("".join(json.dumps(line) + "\n" for line in lines))
        return run("build", corpus, "-k", folder / "checkpoint", "-o", store, "-c", "beir", *options)

    assert build().exit_code == 0
    lines[3] |= {"text": "other"}
    lines[0] = {"_id": "new", "text": "new"}
    assert "1 new, 1 changed, 10 same, 1 gone" in build("--dry-run").stdout
    shown = build()
    assert shown.exit_code == 0, shown.output
    assert "documents: 1 new, 1 changed, 10 same, 1 gone, 0 pruned; 1 document not in the corpus" in shown.stdout
    assert "last update" in run("info", store).stdout
    pruned = json.loads(build("--prune", "--json").stdout)
    assert pruned["changes"] == {"new": 0, "changed": 0, "same": 12, "gone": 0, "pruned": 1}

    missing = run("delete", store, "d1", "d99")
    assert missing.exit_code == 2
    assert "'d99'" in missing.output
    (tmp_path / "ids").write_text("d2\n\nd98\n", "utf-8")
    shown = run("delete", store, "d1", "d99", "--ids", tmp_path / "ids", "--skip-missing")
    assert shown.exit_code == 0, shown.output
    assert "2 documents deleted, 2 not there: 'd99', 'd98'" in shown.stdout
    assert json.loads(run("delete", store, "d5", "--json").stdout) == {"deleted": 1, "missing": []}
    assert run("delete", store).exit_code == 2
    (tmp_path / "ids").write_bytes(b"\xff\n")
    refused = run("delete", store, "--ids", tmp_path / "ids")
    assert refused.exit_code == 2
    assert "is not UTF-8 at byte 0" in refused.output

    shown = run("compact", store)
    assert shown.exit_code == 0, shown.output
    assert "fragments" in shown.stdout
    compaction = json.loads(run("compact", store, "--older-than", 0, "--json").stdout)
    assert (compaction["fragments"], compaction["versions"]) == (1, 1)
    with Reader(store) as reader:
        assert set(reader.ids()) == {"new", "d3", "d4", *(f"d{n}" for n in range(6, 12))}


def test_get(folder, tmp_path):
    shown = run("get", folder / "store", "d3", "d1", "-o", tmp_path / "memory.npz")
    assert shown.exit_code == 0, shown.output
    arrays = np.load(tmp_path / "memory.npz")
    assert sorted(arrays) == ["d1", "d3"]
    rows = json.loads(run("get", folder / "store", "d3", "d1", "--json").stdout)
    assert [row["doc_id"] for row in rows] == ["d3", "d1"]
    assert rows[0]["shape"] == list(arrays["d3"].shape)
    assert rows[0]["mean_norm"] == pytest.approx(float(np.linalg.norm(arrays["d3"], axis=1).mean()), rel=1e-5)


def test_verify_and_repair(folder, tmp_path):
    store = shutil.copytree(folder / "store", tmp_path / "store")
    shown = run("verify", store, "-k", folder / "checkpoint", "--sample", 3, "--corpus", folder / "corpus.jsonl")
    assert shown.exit_code == 0, shown.output
    assert f"{store}: sound. 12 documents, " in shown.stdout
    assert "1 of 1 shards done; 3 documents compressed again, largest relative error " in shown.stdout
    assert "MB/s" in shown.stdout
    assert f"{store}: nothing is damaged; " in run("repair", store).stdout

    (file,) = (store / "memory.lance" / "data").glob("*.lance")
    file.unlink()
    shown = run("verify", store)
    assert shown.exit_code == 3
    assert f"memory: data/{file.name}: is missing. `pisco-index repair` drops it" in shown.stdout
    assert f"{store}: 1 problem. 0 documents" in shown.stdout
    as_json = run("verify", store, "--json")
    assert as_json.exit_code == 3
    (problem,) = json.loads(as_json.stdout)["problems"]
    assert (problem["table"], problem["file"], problem["doc_id"]) == ("memory", f"data/{file.name}", None)

    planned = run("repair", store, "--dry-run")
    assert f"unreadable: memory/data/{file.name}" in planned.stdout
    assert "would drop 1 unreadable file and 0 damaged rows." in planned.stdout
    assert json.loads(run("repair", store, "--dry-run", "--json").stdout)["files"] == [f"memory/data/{file.name}"]
    done = run("repair", store)
    assert done.exit_code == 0
    assert "dropped 1 unreadable file" in done.stdout
    assert "Run its build command to fill it again." in done.stdout
    assert run("verify", store).exit_code == 0
    assert run("verify", tmp_path / "none").exit_code == 2


def test_export(folder, tmp_path):
    (tmp_path / "ids").write_text("d3\nd1\n")
    arguments = ("export", folder / "store", "--out", tmp_path / "out", "--ids", tmp_path / "ids", "--format", "npy")
    shown = run(*arguments)
    assert shown.exit_code == 0, shown.output
    assert f"{tmp_path / 'out'}: 2 documents, " in shown.stdout
    assert json.loads((tmp_path / "out" / "part-00000.ids.json").read_text()) == ["d3", "d1"]
    again = run(*arguments, "--json")
    assert json.loads(again.stdout)["parts_before"] == 1
    assert "in 1 part (1 before)" in run(*arguments).stdout
    refused = run(*arguments, "--dtype", "bfloat16")
    assert refused.exit_code == 2
    assert "npy files do not hold bfloat16" in refused.stderr


def test_ask(folder):
    arguments = ("ask", folder / "store", "What is it?", "--doc", "d3", "--doc", "d1", "-k", folder / "checkpoint")
    shown = run(*arguments, "--max-new-tokens", 4)
    assert shown.exit_code == 0, shown.output
    values = json.loads(run(*arguments, "--max-new-tokens", 4, "--json").stdout)
    assert values["text"] in shown.stdout
    assert values["memory_tokens"] > 0


def test_eval(folder, tmp_path):
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


def test_dry_run(folder, tmp_path):
    arguments = ("build", folder / "corpus.jsonl", "-k", folder / "checkpoint", "-o", tmp_path / "store", "--dry-run")
    shown = run(*arguments)
    assert shown.exit_code == 0, shown.output
    assert "12 in 1 shard" in shown.stdout
    assert re.search(r"speed +[\d.,]+ passages/s on cpu \([\d.,]+ to [\d.,]+ when it was tried\)", shown.stdout)
    assert re.search(r"time +0:00:\d\d of computing with 1 worker", shown.stdout)
    assert re.search(r"codec +int8: [\d.]+ bits a value, normalised error -4\d\.\d dB, KL about \S+ to ", shown.stdout)
    assert json.loads(run(*arguments, "--json").stdout)["documents"] == 12
    assert not (tmp_path / "store").exists()


def test_recode(folder, tmp_path):
    shown = run("recode", folder / "store", "--codec", "int4", "-o", tmp_path / "int4")
    assert shown.exit_code == 0, shown.output
    assert "codec int4: " in shown.stdout
    assert "12 documents in 1 shard (0 before)" in shown.stdout
    again = json.loads(run("recode", folder / "store", "--codec", "int4", "-o", tmp_path / "int4", "--json").stdout)
    assert (again["done_before"], again["documents"], again["prediction"]) == (1, 12, None)
    assert "codec int4" in run("info", tmp_path / "int4").stdout
    build = ("build", folder / "corpus.jsonl", "-k", folder / "checkpoint", "-o", tmp_path / "int4", "-c", "beir")
    assert "was begun with codec 'int4', not 'int8'" in run(*build).stderr
    assert json.loads(run(*build, "--codec", "int4", "--json").stdout)["committed"] == 0


def test_build_again(folder):
    again = run(
        "build", folder / "corpus.jsonl", "-k", folder / "checkpoint", "-o", folder / "store", "-c", "beir", "--json"
    )
    assert again.exit_code == 0, again.output
    assert json.loads(again.stdout)["committed"] == 0


@pytest.mark.parametrize(
    ("options", "kept"),
    [((), ["title"]), (("--keep", "nothing"), []), (("--keep", "title", "--keep", "text"), ["title", "text"])],
)
def test_keep(folder, tmp_path, options, kept):
    run("build", folder / "corpus.jsonl", "-k", folder / "checkpoint", "-o", tmp_path / "store", *options)
    assert list(Reader(tmp_path / "store").meta.optional_columns) == kept


def test_control_characters_of_a_model_do_not_reach_the_terminal(folder, monkeypatch):
    monkeypatch.setattr("pisco_index.reader.ask.Decoder.answer", lambda *_, **__: "a\x1b[2Jb\nc é")
    shown = run("ask", folder / "store", "why?", "--doc", "d1", "-k", folder / "checkpoint")
    assert shown.stdout == "a\\x1b[2Jb\nc é\n"


def test_inspect(folder):
    values = json.loads(run("checkpoint", "inspect", folder / "checkpoint", "--json").stdout)
    assert values["rate"] == 8
    assert values["compressor"]["hidden"] == 64
    assert "decoder lora rank" in run("checkpoint", "inspect", folder / "checkpoint").stdout


def test_presets():
    shown = run("presets").stdout
    for name in ("beir", "dpr", "msmarco", "wikipedia"):
        assert name in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("build", "{}/nothing.jsonl", "-k", "{}/checkpoint", "-o", "{}/s"), "nothing.jsonl"),
        (("build", "{}/corpus.jsonl", "-k", "{}/nothing", "-o", "{}/s"), "no such checkpoint folder"),
        (
            ("build", "{}/corpus.jsonl", "-k", "{}/checkpoint", "-o", "{}/s", "-c", "wikpedia"),
            "neither a file nor a preset",
        ),
        (("build", "{}/corpus.jsonl", "-k", "{}/checkpoint", "-o", "{}/s", "-c", "wikipedia"), "mediawiki"),
        (("build", "{}/corpus.jsonl", "-k", "{}/checkpoint", "-o", "{}/s", "--max-length", "0"), "max_length"),
        (("build", "{}/corpus.jsonl", "-k", "{}/checkpoint", "-o", "{}/s", "--text-field", "body"), "body"),
        (("build", "{}/corpus.jsonl", "-k", "{}/checkpoint", "-o", "{}/s", "--device", "cuda:9"), "cuda:9"),
        (("build", "{}/corpus.jsonl", "-k", "{}/checkpoint", "-o", "{}/s", "--device", "mps"), "is no device"),
        (("build", "{}/corpus.jsonl", "-k", "{}/checkpoint", "-o", "{}/s", "-c", "{}/store/assets.lance"), "neither"),
        (("info", "{}/nothing"), "no store"),
        (("status", "{}/nothing"), "no store"),
        (
            ("build", "{}/corpus.jsonl", "-k", "{}/checkpoint", "-o", "{}/s", "--events", "{}/no/events"),
            "cannot be written",
        ),
        (
            (
                "build",
                "{}/corpus.jsonl",
                "-k",
                "{}/checkpoint",
                "-o",
                "{}/s",
                "--metrics-port",
                "1",
                "--metrics-host",
                "x",
            ),
            "cannot be served",
        ),
        (("recode", "{}/store", "--codec", "bf16", "-o", "{}/x"), "keeps less than bf16"),
        (("recode", "{}/store", "--codec", "zip", "-o", "{}/x"), "zip"),
        (("get", "{}/store", "d1", "-o", "{}/no/folder/x.npz"), "cannot be written"),
        (("ask", "{}/store", "why?", "--doc", "d1", "-k", "{}/checkpoint", "--max-new-tokens", "0"), "max-new-tokens"),
        (("checkpoint", "new", "{}/corpus.jsonl/x", "--tiny"), "cannot be made"),
        (("get", "{}/store", "d1", "zz"), "'zz'"),
        (("get", "{}/store", "d1", "-o", "{}/x.bin"), ".npz"),
        (("ask", "{}/store", "why?", "--doc", "zz", "-k", "{}/checkpoint"), "'zz'"),
        (("eval", "{}/store", "-q", "{}/nothing", "-k", "{}/checkpoint"), "cannot be read"),
        (("eval", "{}/store", "-q", "{}/corpus.jsonl", "-k", "{}/checkpoint"), "line 1: question must be a text"),
        (("eval", "{}/store", "-q", "{}/q", "-k", "{}/checkpoint", "--answers", "{}/no/a"), "there is no folder"),
        (("eval", "{}/store", "-q", "{}/q", "-k", "{}/checkpoint", "-n", "0"), "--documents"),
        (("checkpoint", "inspect", "{}/store"), "missing config.json"),
        (("checkpoint", "new", "{}/checkpoint", "--tiny"), "holds something already"),
        (("checkpoint", "new", "{}/other"), "--tiny"),
    ],
)
def test_bad_input_is_one_paragraph_and_exit_code_2(folder, arguments, message):
    shown = run(*(argument.format(folder) for argument in arguments))
    assert shown.exit_code == 2, shown.output
    assert message in shown.stderr
    assert "Traceback" not in shown.stderr


@pytest.mark.parametrize(
    ("text", "meant"),
    [("compression:\n  max_lenght: 128\n", "max_length"), ("run:\n  dtype: float32\n", "compression.dtype")],
)
def test_an_unknown_key_names_the_nearest(folder, tmp_path, text, meant):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    shown = run("build", folder / "corpus.jsonl", "-k", folder / "checkpoint", "-o", tmp_path / "s", "-c", path)
    assert shown.exit_code == 2
    assert f"did you mean {meant}?" in shown.stderr


def test_the_command_line_overrides_the_file(folder, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("compression: {max_length: 16, on_long: truncate}\n")
    run(
        "build", folder / "corpus.jsonl", "-k", folder / "checkpoint", "-o", tmp_path / "s", "-c", path,
        "--max-length", 24,
    )  # fmt: skip
    components = json.loads(run("info", tmp_path / "s", "--json").stdout)["fingerprint_components"]
    assert (components["max_length"], components["on_long"]) == ("24", "truncate")


def test_help_starts_without_torch():
    code = "import sys; sys.argv = ['pisco-index', '--help']\nfrom pisco_index.cli import main\ntry: main()\n"
    code += "except SystemExit: pass\nprint('torch' in sys.modules)"
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert finished.stdout.strip().endswith("False")


def test_what_the_system_refuses_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    result = run("train", "tinypedia", tmp_path / "file" / "folder")
    assert result.exit_code == 2
    assert result.stderr.strip() == f"error: {tmp_path / 'file' / 'folder'}: Not a directory."


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_disk_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr("pisco_index.training.tinypedia.write", lambda *_, **__: Path("/dev/full").write_text("x"))
    result = run("train", "tinypedia", tmp_path)
    assert (result.exit_code, result.stderr.strip()) == (2, "error: No space left on device.")
