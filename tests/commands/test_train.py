"""The commands of ``train``."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pisco_index import new_tiny_checkpoint
from pisco_index.commands import train
from pisco_index.errors import TrainingInterruptedError

TRAINER = """
trainer: {use_cpu: true, max_steps: 2, per_device_train_batch_size: 2, disable_tqdm: true}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A checkpoint, training data and short configurations."""
    folder = tmp_path_factory.mktemp("train")
    new_tiny_checkpoint(folder / "start")
    (folder / "pre.yaml").write_text(f"windows: [16]\ncompression: {{template: '{{text}}'}}\n{TRAINER}")
    (folder / "fine.yaml").write_text(TRAINER)
    (folder / "pairs.yaml").write_text(f"query_dependent: true\n{TRAINER}")
    train.tinypedia(folder / "data", articles=12, conversations=6)
    return folder


def test_tinypedia(folder, run, tmp_path):
    options = ("--articles", 9, "--split", "held-out", "--seed", 3, "--documents", 2)
    assert run("train", "tinypedia", tmp_path, *options).stdout == f"{tmp_path}: 9 articles of the held-out split\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus.jsonl", "questions.jsonl", "run.trec"]
    assert len((tmp_path / "corpus.jsonl").read_text().splitlines()) == 9
    for name in ("conversations", "short-conversations", "recitals"):
        assert len((folder / "data" / f"{name}.jsonl").read_text().splitlines()) == 6
    said = run("train", "tinypedia", tmp_path, "--articles", 9, "--conversations", 1).stdout
    assert said == f"{tmp_path}: 9 articles, 1 conversation of the train split\n"


def test_from_pretraining_to_an_index(folder, run, tmp_path):
    data, pretrained, finetuned = folder / "data", tmp_path / "pre", tmp_path / "fine"
    first = ("train", "pretrain", data / "corpus.jsonl", "-k", folder / "start", "-o", pretrained, "--decoder", "full")
    shown = run(*first, "-c", folder / "pre.yaml")
    assert shown.exit_code == 0, shown.output
    expected = f"{pretrained}: trained checkpoint. Next: pisco-index train finetune CONVERSATIONS -k {pretrained}"
    assert expected in shown.stdout
    assert (pretrained / "base_decoder").is_dir()
    (folder / "more.yaml").write_text((folder / "pre.yaml").read_text().replace("max_steps: 2", "max_steps: 9"))
    again = run(*first, "-c", folder / "more.yaml")
    assert again.stdout.startswith(f"{pretrained}: trained checkpoint, finished before: nothing was done. Next:")

    second = ("train", "finetune", data / "conversations.jsonl", "-k", pretrained, "-o", finetuned)
    shown = run(*second, "-c", folder / "fine.yaml", "--max-length", 64)
    assert shown.exit_code == 0, shown.output
    assert f"pisco-index build CORPUS -k {finetuned} -o URI --max-length 64\n" in shown.stdout
    built = run("build", data / "corpus.jsonl", "-k", finetuned, "-o", tmp_path / "store", "--max-length", 64)
    assert built.exit_code == 0, built.output


def test_query_dependent_memory_is_not_to_be_stored(folder, run, tmp_path):
    several = folder / "data" / "conversations.jsonl"
    data = tmp_path / "of-one-turn.jsonl"
    records = [json.loads(line) for line in several.read_text("utf-8").splitlines()]
    data.write_text("".join(json.dumps(each | {"turns": each["turns"][:1]}) + "\n" for each in records), "utf-8")
    arguments = ("-k", folder / "start", "-c", folder / "pairs.yaml", "-o")
    refused = run("train", "finetune", several, *arguments, tmp_path / "several")
    assert refused.exit_code == 2
    assert "turns, and memory that depends on the question is made for one" in refused.stderr
    shown = run("train", "finetune", data, *arguments, tmp_path / "o")
    assert "trained checkpoint. Its memory depends on the question and cannot be precomputed.\n" in shown.stdout


def test_distill(folder, run, tmp_path):
    data, out, teacher = folder / "data", tmp_path / "answers.jsonl", tmp_path / "teacher"
    shutil.copytree(folder / "start" / "base_decoder", teacher)
    # Whatever it says first is its end.
    (teacher / "generation_config.json").write_text(json.dumps({"eos_token_id": list(range(4096))}))
    arguments = (
        "train", "distill", data / "corpus.jsonl", "-q", data / "questions.jsonl", "--run", data / "run.trec", "-n", 2,
        "--teacher", teacher, "-o", out, "--max-new-tokens", 3, "--dtype", "float32",
    )  # fmt: skip
    shown = run(*arguments)
    assert shown.exit_code == 0, shown.output
    written = [json.loads(line) for line in out.read_text("utf-8").splitlines()]
    assert f"{out}: {len(written)} answers written (0 before)" in shown.stdout
    assert f"pisco-index train finetune {out} -k CHECKPOINT -o DIR" in shown.stdout
    assert {len(record["documents"]) for record in written} == {2}
    assert f"{out}: 0 answers written ({len(written)} before)" in run(*arguments).stdout
    (teacher / "generation_config.json").write_text(json.dumps({"eos_token_id": 0}))
    longer = run(*arguments[:-5], tmp_path / "none.jsonl", *arguments[-4:]).stdout
    assert f"0 answers written (0 before), {len(written)} longer than 3 tokens and left out. Next" in longer


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("train", "pretrain"), "checkpoint is not given"),
        (("train", "pretrain", "-k", "{}/start", "-o", "{}/new"), "data is not given"),
        (("train", "pretrain", "{}/no", "-k", "{}/start", "-o", "{}/new"), "{}/no"),
        (("train", "pretrain", "-c", "pisc"), "Presets: pisco, tinypedia"),
        (("train", "finetune", "-c", "{}/pre.yaml"), "unknown key windows"),
        (("train", "finetune", "{}/data/corpus.jsonl", "-k", "{}/start", "-o", "{}/new"), "corpus.jsonl:1: documents:"),
        (("train", "tinypedia", "{}/new", "--articles", "3"), "need as many articles"),
        (("train", "tinypedia", "{}/new", "--split", "dev"), "--split"),
        (("train", "distill", "{}/data/corpus.jsonl", "-q", "{}/no", "-t", "x", "-o", "{}/a"), "cannot be read"),
    ],
)
def test_bad_input_is_one_paragraph_and_exit_code_2(folder, run, arguments, message):
    shown = run(*(argument.format(folder) for argument in arguments))
    assert shown.exit_code == 2, shown.output
    assert message.format(folder) in shown.stderr
    assert "Traceback" not in shown.stderr


def test_a_signal_is_exit_code_130(folder, run, monkeypatch):
    def stopped(*_):
        raise TrainingInterruptedError("stopped by a signal after step 3.")

    monkeypatch.setattr("pisco_index.training.train.pretrain", stopped)
    shown = run("train", "pretrain", "-c", folder / "pre.yaml")
    assert (shown.exit_code, shown.stderr) == (130, "stopped by a signal after step 3.\n")


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_what_training_needs_is_named_where_it_is_missing(run, monkeypatch, stage):
    monkeypatch.setattr(train, "find_spec", lambda name: None if name == "peft" else name)
    shown = run("train", stage)
    assert shown.exit_code == 2
    assert "training needs peft, which is not installed." in shown.stderr
    assert "pip install accelerate peft" in shown.stderr


def test_of_several_processes_one_speaks(run, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr("pisco_index.training.train.pretrain", lambda config: Path("x"))
    assert run("train", "pretrain").stdout == ""


def test_a_launcher_may_run_the_command_as_a_module():
    command = [sys.executable, "-m", "pisco_index.cli", "train", "pretrain", "--help"]
    assert "--checkpoint" in subprocess.run(command, capture_output=True, text=True, check=True).stdout
