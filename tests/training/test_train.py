"""The two stages: what they learn, and that a resumed training ends with the weights of an undisturbed one."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pisco_index import Decoder, Reader, build, finetune, load_config, pretrain
from pisco_index.configs import FinetuningConfig
from pisco_index.errors import TrainingError
from pisco_index.training import train as stages
from pisco_index.training.tinypedia import conversations, write_conversations

STEPS, SAVED = 15, 5
TRAINER = {"use_cpu": True, "disable_tqdm": True, "per_device_train_batch_size": 4, "learning_rate": 2e-3}
# Gives a subprocess the class ``SignalAtBatch`` of the neighbouring file.
HELPERS = f"""
import importlib.util, os, signal
import torch
from pisco_index import pretrain
from pisco_index.configs import load_pretraining
from pisco_index.errors import TrainingInterruptedError
spec = importlib.util.spec_from_file_location("helpers", {str(Path(__file__).with_name("conftest.py"))!r})
helpers = importlib.util.module_from_spec(spec)
spec.loader.exec_module(helpers)
torch.set_num_threads(1)
"""


def weights_of(out, step=STEPS):
    return load_file(out / "training" / f"checkpoint-{step}" / "model.safetensors")


def require_equal(one, other, within=1e-6):
    assert one.keys() == other.keys()
    for name, values in one.items():
        torch.testing.assert_close(values, other[name], rtol=0, atol=within, msg=name)


def losses_of(out):
    history = json.loads((out / "training" / "trainer_state.json").read_text())["log_history"]
    return [entry["loss"] for entry in history if "loss" in entry]


def saved_as_yaml(settings, path):
    path.write_text(json.dumps(settings.model_dump(mode="json")))
    return path


@pytest.fixture(scope="module")
def learned(pretraining, tmp_path_factory):
    """A pretraining of all weights, long enough to learn something."""
    trainer = {"max_steps": 120, "save_steps": 120, "logging_steps": 12, "learning_rate": 4e-3, "warmup_steps": 12}
    return pretrain(pretraining(tmp_path_factory.mktemp("learned") / "out", trainer=trainer, decoder="full"))


def test_a_pretraining_learns(learned):
    losses = losses_of(learned.path)
    assert len(losses) == 10
    assert losses[-1] < 0.6 * losses[0]


def test_a_trained_checkpoint_builds_and_answers(learned, tinypedia, tmp_path):
    config = load_config("beir", {"compression": {"max_length": 24}})
    build([tinypedia / "corpus.jsonl"], learned.path, tmp_path / "store", config)
    memory = Reader(tmp_path / "store").fetch(["tp-train-000000"])
    assert isinstance(Decoder.load(learned.path).answer("Who?", memory, max_new_tokens=4), str)


def test_a_finished_training_is_returned_at_once(learned, pretraining, monkeypatch):
    monkeypatch.setattr(stages, "StageTrainer", None)
    settings = pretraining(
        learned.path, decoder="full", trainer={"max_steps": 1, "learning_rate": 4e-3, "warmup_steps": 12}
    )
    assert pretrain(settings).identity == learned.identity
    with pytest.raises(TrainingError, match=r"other settings, the first: decoder was 'full' and is 'lora'"):
        pretrain(pretraining(learned.path))


@pytest.mark.parametrize("values", [{}, {"compile": True}])
def test_the_model_is_made_as_the_settings_say(pretraining, tiny, tmp_path, monkeypatch, values):
    made, compiled = [], []

    class Model(stages.TrainableModel):
        def __init__(self, checkpoint, **options):
            made.append(options)
            super().__init__(checkpoint, **options)

        def compile_models(self):
            compiled.append(self)

    monkeypatch.setattr(stages, "TrainableModel", Model)
    trainer = {"max_steps": 2, "bf16": True}
    trained = pretrain(pretraining(tmp_path, lora_dropout=0.3, trainer=trainer, **values))
    assert made == [{"decoder": "lora", "lora_dropout": 0.3, "base_dtype": torch.bfloat16}]
    assert len(compiled) == len(values)
    assert trained.identity != tiny.identity
    assert {values.dtype for values in weights_of(tmp_path, 2).values()} == {torch.float32}


@pytest.mark.parametrize("query_dependent", [False, True])
def test_a_fine_tuning_of_pairs_and_embeddings_learns(tiny, tinypedia, tmp_path, query_dependent):
    out, data = tmp_path / "out", tinypedia / "conversations.jsonl"
    if query_dependent:
        data = tmp_path / "of-one-turn.jsonl"
        write_conversations(data, islice(conversations("train", documents=(1, 2), questions=1), 40))
    settings = {
        "checkpoint": str(tiny.path),
        "data": [str(data)],
        "out": str(out),
        "compression": {"max_length": 64},
        "query_dependent": query_dependent,
        "text_ratio": 0.25,
        "trainer": {**TRAINER, "max_steps": 15, "logging_steps": 5, "activation_checkpointing": True},
    }
    trained = finetune(FinetuningConfig.parse(settings, "test"))
    losses = losses_of(out)
    assert losses[-1] < 0.9 * losses[0]
    assert trained.identity != tiny.identity
    # The base decoder is not trained, and is copied into the new checkpoint.
    base = Path("base_decoder") / "model.safetensors"
    assert (out / base).read_bytes() == (tiny.path / base).read_bytes()


# The worker process is forked, of which lance warns once another test has loaded it.
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("workers", [0, 1])
def test_a_record_that_cannot_be_used_is_named_in_one_line(tiny, lines, tmp_path, workers):
    path = lines(json.dumps({"documents": [{"text": "a b c"}], "question": "Why?", "answer": "because " * 50}))
    values = {"checkpoint": str(tiny.path), "data": [str(path)], "out": str(tmp_path / "out"), "max_tokens": 60}
    trainer = {**TRAINER, "max_steps": 1, "dataloader_num_workers": workers}
    with pytest.raises(TrainingError) as caught:
        finetune(FinetuningConfig.parse({**values, "trainer": trainer}, "test"))
    assert re.match(rf"{path}:1: the prompt with its answer has \d+ tokens, but only 60 fit", str(caught.value))
    assert "\n" not in str(caught.value)


# Resuming


@pytest.fixture(scope="module")
def undisturbed(pretraining, tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    pretrain(pretraining(out))
    return weights_of(out)


def test_the_same_training_gives_the_same_weights(undisturbed, pretraining, tmp_path):
    pretrain(pretraining(tmp_path))
    require_equal(weights_of(tmp_path), undisturbed)


@pytest.mark.parametrize("batch", [4, 11])
def test_a_signal_saves_the_state_and_the_same_call_resumes(undisturbed, pretraining, interrupt, tmp_path, batch):
    settings = pretraining(tmp_path)
    interrupt(settings, batch)
    assert not (tmp_path / "config.json").exists()
    pretrain(settings)
    require_equal(weights_of(tmp_path), undisturbed)


def test_a_training_resumes_several_times_and_with_accumulated_gradients(pretraining, interrupt, tmp_path):
    trainer = {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2, "save_steps": 500}
    pretrain(pretraining(tmp_path / "undisturbed", trainer=trainer))
    settings = pretraining(tmp_path / "out", trainer=trainer)
    for batch in (7, 2, 9):
        interrupt(settings, batch)
    pretrain(settings)
    require_equal(weights_of(tmp_path / "out"), weights_of(tmp_path / "undisturbed"))


def test_a_killed_training_resumes_from_the_last_complete_state(undisturbed, pretraining, tmp_path):
    out = tmp_path / "out"
    settings = pretraining(out)
    config = saved_as_yaml(settings, tmp_path / "config.yaml")
    code = f"""{HELPERS}
settings = load_pretraining({str(config)!r})
pretrain(settings, collator=helpers.SignalAtBatch(settings, signal.SIGKILL, 13))
"""
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert finished.returncode == -signal.SIGKILL, finished.stderr
    # As if it had been killed once more while it saved.
    saved = out / "training" / f"checkpoint-{2 * SAVED}"
    torn = shutil.copytree(saved, saved.with_name("checkpoint-11"))
    (torn / "model.safetensors").write_bytes(b"")
    (torn / "trainer_state.json").unlink()
    saved.with_name("checkpoint-tmp").mkdir()
    pretrain(settings)
    require_equal(weights_of(out), undisturbed)


# Several processes


def test_a_signal_to_all_processes_saves_the_state(pretraining, tmp_path):
    trainer = {"dataloader_num_workers": 2, "max_steps": 10000, "save_steps": 3}
    config = saved_as_yaml(pretraining(tmp_path / "out", trainer=trainer), tmp_path / "config.yaml")
    command = [sys.executable, "-m", "pisco_index.cli", "train", "pretrain", "-c", str(config)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True)
    try:
        while process.poll() is None and not list((tmp_path / "out").glob("training/*/trainer_state.json")):
            time.sleep(0.1)
        os.killpg(process.pid, signal.SIGTERM)
        shown = process.communicate(timeout=60)[1]
    finally:
        process.kill()
    assert process.returncode == 130, shown
    step = int(re.search(r"stopped by a signal after step (\d+); the state is saved", shown)[1])
    assert (tmp_path / "out" / "training" / f"checkpoint-{step}" / "trainer_state.json").is_file()


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_worker_processes_may_make_the_batches(pretraining, tmp_path):
    pretrain(pretraining(tmp_path, trainer={"dataloader_num_workers": 1, "save_steps": 500}))
    assert torch.load(tmp_path / "training" / f"checkpoint-{STEPS}" / "ahead_0.pt") == []


def launched(*command):
    """Return what two processes print that torch's launcher starts, over loopback whatever the host's name is."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1", "--nproc_per_node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    finished = subprocess.run(
        [sys.executable, *launcher, *command], capture_output=True, text=True, check=False, env=environment, timeout=300
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def test_two_processes_train_as_one_does_and_stop_together(pretraining, tmp_path):
    fixed = {"autoencoding": 1.0, "windows": [1000], "lora_dropout": 0.0}
    pretrain(pretraining(tmp_path / "one", **fixed))
    halved = {"per_device_train_batch_size": 2, "ddp_backend": "gloo"}
    config = saved_as_yaml(pretraining(tmp_path / "two", trainer=halved, **fixed), tmp_path / "config.yaml")
    (tmp_path / "stage.py").write_text(f"""{HELPERS}
settings = load_pretraining({str(config)!r})
batch = 3 if os.environ["RANK"] == "1" else 1000
try:
    pretrain(settings, collator=helpers.SignalAtBatch(settings, signal.SIGTERM, batch))
except TrainingInterruptedError:
    print("stopped")
""")
    assert launched(tmp_path / "stage.py").count("stopped") == 2
    assert launched("-m", "pisco_index.cli", "train", "pretrain", "-c", config).count("trained checkpoint") == 1
    require_equal(weights_of(tmp_path / "two"), weights_of(tmp_path / "one"), within=1e-4)
