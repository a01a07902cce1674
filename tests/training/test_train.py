"""The two stages: what they learn, how they are stopped and gone on with, and what they refuse."""

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

from pisco_index import (
    Checkpoint,
    ConfigError,
    Decoder,
    FinetuningConfig,
    Pretraining,
    PretrainingConfig,
    Reader,
    TrainingError,
    TrainingInterruptedError,
    build,
    finetune,
    load_config,
    load_finetuning,
    load_pretraining,
    presets,
    pretrain,
)
from pisco_index.training import train as stages
from pisco_index.training.tinypedia import conversations as drawn_conversations
from pisco_index.training.tinypedia import write_conversations

STEPS, SAVED = 15, 5
TRAINER = {
    "use_cpu": True,
    "disable_tqdm": True,
    "per_device_train_batch_size": 4,
    "learning_rate": 2e-3,
    "lr_scheduler_type": "linear",
}


def pretraining(checkpoint, data, out, *, trainer=None, **values):
    compression = {"max_length": 24, "template": "{text}"}
    plain = {"checkpoint": str(checkpoint.path), "data": [str(data / "corpus.jsonl")], "out": str(out)}
    settings = {"compression": compression, "windows": [16, 48], **plain, **values}
    return PretrainingConfig.parse({**settings, "trainer": {**TRAINER, **(trainer or {})}}, "test")


def short(checkpoint, data, out, *, trainer=None, **values):
    """A training that draws windows, tasks and dropout, over the end of an epoch of 10 steps."""
    return pretraining(
        checkpoint, data, out, trainer={"max_steps": STEPS, "save_steps": SAVED, **(trainer or {})}, **values
    )


class Striking(Pretraining):
    """Ends the process by a signal while a batch is made."""

    def __init__(self, config, number, batch):
        options = {"ratio": config.autoencoding, "windows": config.windows}
        super().__init__(Checkpoint(config.checkpoint), config.compression, **options)
        self.signal, self.batches = number, batch

    def __call__(self, records):
        self.batches -= 1
        if self.batches == 0:
            os.kill(os.getpid(), self.signal)
        return super().__call__(records)


def weights_of(out, step=STEPS):
    return load_file(out / "training" / f"checkpoint-{step}" / "model.safetensors")


def require_equal(one, other, within=1e-6):
    assert one.keys() == other.keys()
    for name, values in one.items():
        torch.testing.assert_close(values, other[name], rtol=0, atol=within, msg=name)


def losses_of(out):
    history = json.loads((out / "training" / "trainer_state.json").read_text())["log_history"]
    return [entry["loss"] for entry in history if "loss" in entry]


@pytest.fixture(scope="module")
def learned(tiny, tinypedia, tmp_path_factory):
    """A pretraining of all weights, long enough to learn something."""
    out = tmp_path_factory.mktemp("learned") / "out"
    trainer = {"max_steps": 200, "logging_steps": 20, "learning_rate": 4e-3, "warmup_steps": 20}
    return pretrain(pretraining(tiny, tinypedia, out, trainer=trainer, decoder="full"))


def test_a_pretraining_learns(learned):
    losses = losses_of(learned.path)
    assert len(losses) == 10
    assert losses[-1] < 0.6 * losses[0]


def test_what_was_trained_builds_and_answers(learned, tinypedia, tmp_path):
    config = load_config("beir", {"compression": {"max_length": 24}})
    build([tinypedia / "corpus.jsonl"], learned.path, tmp_path / "store", config)
    memory = Reader(tmp_path / "store").fetch(["tp-train-000000"])
    assert isinstance(Decoder.load(learned.path).answer("Who?", memory, max_new_tokens=4), str)


def test_a_finished_training_is_returned_at_once(learned, tiny, tinypedia, monkeypatch):
    monkeypatch.setattr(stages, "StageTrainer", None)
    settings = pretraining(tiny, tinypedia, learned.path, decoder="full", trainer={"max_steps": 1})
    assert pretrain(settings).identity == learned.identity
    with pytest.raises(TrainingError, match=r"other settings, the first: decoder was 'full' and is 'lora'"):
        pretrain(pretraining(tiny, tinypedia, learned.path))


@pytest.fixture(scope="module")
def undisturbed(tiny, tinypedia, tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    pretrain(short(tiny, tinypedia, out))
    return weights_of(out)


def test_the_same_training_gives_the_same_weights(undisturbed, tiny, tinypedia, tmp_path):
    pretrain(short(tiny, tinypedia, tmp_path))
    require_equal(weights_of(tmp_path), undisturbed)


@pytest.mark.parametrize("batch", [4, 11])
def test_a_signal_saves_and_the_same_call_goes_on(undisturbed, tiny, tinypedia, tmp_path, batch):
    settings = short(tiny, tinypedia, tmp_path)
    with pytest.raises(TrainingInterruptedError, match=r"after step \d+; the state is saved"):
        pretrain(settings, collator=Striking(settings, signal.SIGTERM, batch))
    assert not (tmp_path / "config.json").exists()
    pretrain(settings)
    require_equal(weights_of(tmp_path), undisturbed)


def test_going_on_several_times_and_with_accumulated_gradients_is_the_same(tiny, tinypedia, tmp_path):
    trainer = {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2, "max_steps": STEPS}
    pretrain(short(tiny, tinypedia, tmp_path / "undisturbed", trainer=trainer))
    settings = short(tiny, tinypedia, tmp_path / "out", trainer=trainer)
    for batch in (7, 2, 9):
        with pytest.raises(TrainingInterruptedError):
            pretrain(settings, collator=Striking(settings, signal.SIGTERM, batch))
    pretrain(settings)
    require_equal(weights_of(tmp_path / "out"), weights_of(tmp_path / "undisturbed"))


@pytest.mark.parametrize("values", [{}, {"compile": True}])
def test_the_model_is_made_as_the_settings_say(tiny, tinypedia, tmp_path, monkeypatch, values):
    made, compiled = [], []

    class Model(stages.TrainableModel):
        def __init__(self, checkpoint, **options):
            made.append(options)
            super().__init__(checkpoint, **options)

        def compile_models(self):
            compiled.append(self)

    monkeypatch.setattr(stages, "TrainableModel", Model)
    trainer = {"max_steps": 2, "bf16": True}
    trained = pretrain(short(tiny, tinypedia, tmp_path, lora_dropout=0.3, trainer=trainer, **values))
    assert made == [{"decoder": "lora", "lora_dropout": 0.3, "base_dtype": torch.bfloat16}]
    assert len(compiled) == len(values)
    assert trained.identity != tiny.identity
    assert {values.dtype for values in weights_of(tmp_path, 2).values()} == {torch.float32}


def test_of_several_gpus_one_is_used(tiny, tinypedia, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    arguments = stages._arguments(short(tiny, tinypedia, tmp_path, trainer={"use_cpu": False}), tmp_path)
    assert arguments.n_gpu == 1
    assert arguments.train_batch_size == TRAINER["per_device_train_batch_size"]
    assert "Of 4 GPUs one is used. For more, start the command with a launcher." in caplog.text


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_worker_processs_error_is_the_plain_one(tiny, lines, tmp_path):
    path = lines(json.dumps({"documents": [{"text": "a b c"}], "question": "Why?", "answer": "because " * 50}))
    values = {"checkpoint": str(tiny.path), "data": [str(path)], "out": str(tmp_path / "out"), "max_tokens": 60}
    trainer = {**TRAINER, "max_steps": 1, "dataloader_num_workers": 1}
    with pytest.raises(TrainingError) as caught:
        finetune(FinetuningConfig.parse({**values, "trainer": trainer}, "test"))
    assert str(caught.value).startswith(f"{path}:1: the prompt has ")
    assert "\n" not in str(caught.value)


def test_a_signal_to_all_processes_saves_the_state(tiny, tinypedia, tmp_path):
    trainer = {"dataloader_num_workers": 2, "max_steps": 10000, "save_steps": 3}
    settings = short(tiny, tinypedia, tmp_path / "out", trainer=trainer)
    (tmp_path / "config.yaml").write_text(json.dumps(settings.model_dump(mode="json")))
    command = [sys.executable, "-m", "pisco_index.cli", "train", "pretrain", "-c", str(tmp_path / "config.yaml")]
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
    step = int(re.search(r"Stopped by a signal after step (\d+); the state is saved", shown)[1])
    assert (tmp_path / "out" / "training" / f"checkpoint-{step}" / "trainer_state.json").is_file()


# Other tests have loaded lance, which training does not; it warns of forks.
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_worker_processes_may_make_the_batches(tiny, tinypedia, tmp_path):
    settings = short(tiny, tinypedia, tmp_path, trainer={"dataloader_num_workers": 1})
    pretrain(settings)
    assert torch.load(tmp_path / "training" / f"checkpoint-{STEPS}" / "ahead_0.pt") == []


def test_a_killed_training_goes_on_from_what_was_saved(undisturbed, tiny, tinypedia, tmp_path):
    out = tmp_path / "out"
    settings = short(tiny, tinypedia, out)
    (tmp_path / "config.yaml").write_text(json.dumps(settings.model_dump(mode="json")))
    code = f"""
import importlib.util, signal, sys
import torch
from pisco_index import load_pretraining, pretrain
spec = importlib.util.spec_from_file_location("stages", {__file__!r})
tests = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tests)
torch.set_num_threads(1)
settings = load_pretraining({str(tmp_path / "config.yaml")!r})
pretrain(settings, collator=tests.Striking(settings, signal.SIGKILL, 13))
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


def launched(*command):
    """What two processes print that the standard launcher starts; over loopback, whatever the host calls itself."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1", "--nproc_per_node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    finished = subprocess.run(
        [sys.executable, *launcher, *command], capture_output=True, text=True, check=False, env=environment, timeout=300
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def test_two_processes_train_as_one_does_and_stop_together(tiny, tinypedia, tmp_path):
    fixed = {"autoencoding": 1.0, "windows": [1000], "lora_dropout": 0.0}
    pretrain(short(tiny, tinypedia, tmp_path / "one", **fixed))
    halved = {"per_device_train_batch_size": 2, "ddp_backend": "gloo"}
    settings = short(tiny, tinypedia, tmp_path / "two", trainer=halved, **fixed)
    (tmp_path / "config.yaml").write_text(json.dumps(settings.model_dump(mode="json")))
    (tmp_path / "stage.py").write_text(f"""
import importlib.util, os, signal, sys
from pisco_index import TrainingInterruptedError, load_pretraining, pretrain
spec = importlib.util.spec_from_file_location("stages", {__file__!r})
tests = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tests)
settings = load_pretraining({str(tmp_path / "config.yaml")!r})
struck = 3 if os.environ["RANK"] == "1" else 1000
try:
    pretrain(settings, collator=tests.Striking(settings, signal.SIGTERM, struck))
except TrainingInterruptedError:
    print("stopped")
""")
    assert launched(tmp_path / "stage.py").count("stopped") == 2
    command = ["-m", "pisco_index.cli", "train", "pretrain", "-c", tmp_path / "config.yaml"]
    assert launched(*command).count("trained checkpoint") == 1
    require_equal(weights_of(tmp_path / "two"), weights_of(tmp_path / "one"), within=1e-4)


def test_other_settings_or_data_in_the_same_folder_are_an_error(tiny, tinypedia, tmp_path):
    settings = short(tiny, tinypedia, tmp_path)
    with pytest.raises(TrainingInterruptedError):
        pretrain(settings, collator=Striking(settings, signal.SIGTERM, 1))
    with pytest.raises(TrainingError, match=r"other settings, the first: autoencoding was 0\.5 and is 0\.25"):
        pretrain(short(tiny, tinypedia, tmp_path, autoencoding=0.25))


@pytest.mark.parametrize("changed", ["decoder_state", "decoder_base", "data_content"])
def test_another_decoder_or_changed_data_is_an_error(tiny, tinypedia, tmp_path, changed):
    start = Checkpoint(shutil.copytree(tiny.path, tmp_path / "start"))
    data = shutil.copytree(tinypedia, tmp_path / "data")
    settings = short(start, data, tmp_path / "out")
    with pytest.raises(TrainingInterruptedError):
        pretrain(settings, collator=Striking(settings, signal.SIGTERM, 1))
    if changed == "decoder_state":
        state = start.load_decoder_state()
        torch.save({name: values + 1 for name, values in state.items()}, start.path / "decoder_state.pt")
    elif changed == "decoder_base":
        config = start.path / "base_decoder" / "config.json"
        config.write_text(config.read_text().replace("4096", "2048"))
    else:
        corpus = data / "corpus.jsonl"
        corpus.write_text(corpus.read_text().replace("the", "teh"))
    with pytest.raises(TrainingError, match=f"other settings, the first: {changed} was"):
        pretrain(settings)


def test_data_that_was_read_may_go(tiny, tinypedia, tmp_path):
    data = shutil.copytree(tinypedia, tmp_path / "data")
    settings = short(tiny, data, tmp_path / "out", trainer={"max_steps": 2})
    with pytest.raises(TrainingInterruptedError):
        pretrain(settings, collator=Striking(settings, signal.SIGTERM, 1))
    shutil.rmtree(data)
    pretrain(settings)


def test_a_folder_that_holds_something_else_is_an_error(tiny, tinypedia):
    with pytest.raises(TrainingError, match="holds something that no training made; name a new folder"):
        pretrain(short(tiny, tinypedia, tiny.path))


@pytest.mark.parametrize("theirs", ["compressor/mine.txt", "notes.txt", "training/checkpoint-3/mine.txt"])
def test_nothing_of_others_is_taken_away(tiny, tinypedia, tmp_path, theirs):
    path = tmp_path / theirs
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("mine")
    with pytest.raises(TrainingError, match=r"holds something that no training made.*; name a new folder"):
        pretrain(short(tiny, tinypedia, tmp_path))
    assert path.read_text() == "mine"


def test_a_stage_that_was_stopped_while_it_published_goes_on(tiny, tinypedia, tmp_path, monkeypatch):
    settings = short(tiny, tinypedia, tmp_path, trainer={"max_steps": 2})
    replace = Path.replace

    def stopped(path, target):
        if path.name == "connector.pt":
            raise KeyboardInterrupt
        return replace(path, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", stopped)
        with pytest.raises(KeyboardInterrupt):
            pretrain(settings)
    assert (tmp_path / "compressor").is_dir()
    assert not (tmp_path / "config.json").exists()
    assert pretrain(settings).describe()


def test_a_loss_that_is_no_number_ends_the_training(tiny, tinypedia, tmp_path):
    trainer = {"max_steps": 20, "learning_rate": 1e30, "max_grad_norm": 0}
    with pytest.raises(TrainingError, match=r"The loss is (nan|inf) at step \d+\. .* smaller learning_rate"):
        pretrain(pretraining(tiny, tinypedia, tmp_path, trainer=trainer))
    assert not (tmp_path / "config.json").exists()


@pytest.mark.parametrize("strategy", ["steps", "no"])
def test_weights_that_are_no_numbers_are_not_saved(tiny, tinypedia, tmp_path, strategy):
    # More than fp32 holds.
    trainer = {"max_steps": 1, "save_steps": 1, "learning_rate": 1e39, "save_strategy": strategy}
    with pytest.raises(TrainingError, match=r"no longer finite after step 1 and is not saved\. Start in a new folder"):
        pretrain(pretraining(tiny, tinypedia, tmp_path, trainer=trainer))
    assert sorted(path.name for path in tmp_path.rglob("*.safetensors")) == []


def test_steps_may_be_changed_on_the_way(tiny, tinypedia, tmp_path):
    settings = short(tiny, tinypedia, tmp_path)
    with pytest.raises(TrainingInterruptedError):
        pretrain(settings, collator=Striking(settings, signal.SIGTERM, 4))
    pretrain(short(tiny, tinypedia, tmp_path, trainer={"max_steps": 8, "save_steps": 7}))
    assert {path.name for path in (tmp_path / "training").glob("checkpoint-*")} == {"checkpoint-7", "checkpoint-8"}


@pytest.mark.parametrize(
    ("trainer", "message"),
    [
        ({"fsdp": "full_shard"}, r"trainer\.fsdp is not supported"),
        ({"deepspeed": "zero.json"}, r"trainer\.deepspeed is not supported"),
        ({"eval_strategy": "steps", "eval_steps": 5}, r"trainer\.eval_strategy must be no"),
        ({"learning_rat": 1}, r"trainer\.learning_rat is no setting of .*; did you mean learning_rate\?"),
        ({"output_dir": "x"}, r"trainer\.output_dir is set by the stage itself\."),
        ({"save_steps": "often"}, r"trainer: "),
    ],
)
def test_wrong_trainer_settings_are_named(tiny, tinypedia, tmp_path, trainer, message):
    with pytest.raises(ConfigError, match=message):
        pretrain(pretraining(tiny, tinypedia, tmp_path, trainer=trainer))


@pytest.mark.parametrize("key", ["checkpoint", "data", "out"])
def test_what_must_be_given_is_named(tiny, tinypedia, tmp_path, key):
    settings = short(tiny, tinypedia, tmp_path).model_copy(update={key: ()})
    with pytest.raises(ConfigError, match=f"^{key} is not given"):
        pretrain(settings)


@pytest.mark.parametrize("query_dependent", [False, True])
def test_a_fine_tuning_of_pairs_and_embeddings_learns(tiny, tinypedia, tmp_path, tmp_path_factory, query_dependent):
    data = tinypedia / "conversations.jsonl"
    if query_dependent:
        data = tmp_path_factory.mktemp("data") / "of-one-turn.jsonl"
        write_conversations(data, islice(drawn_conversations("train", documents=(1, 2), questions=1), 40))
    settings = FinetuningConfig.parse(
        {
            "checkpoint": str(tiny.path),
            "data": [str(data)],
            "out": str(tmp_path),
            "compression": {"max_length": 64},
            "query_dependent": query_dependent,
            "text_ratio": 0.25,
            "trainer": {**TRAINER, "max_steps": 30, "logging_steps": 10, "activation_checkpointing": True},
        },
        "test",
    )
    trained = finetune(settings)
    losses = losses_of(tmp_path)
    assert losses[-1] < 0.9 * losses[0]
    assert trained.identity != tiny.identity
    # Its base is the one it began from, and goes with it.
    assert (tmp_path / "base_decoder" / "model.safetensors").read_bytes() == (
        tiny.path / "base_decoder" / "model.safetensors"
    ).read_bytes()


def test_a_record_that_cannot_be_used_is_named(tiny, lines, tmp_path):
    record = {"documents": [{"text": "a b c"}], "question": "Why?", "answer": "because " * 50}
    path = lines(json.dumps(record))
    settings = FinetuningConfig.parse(
        {
            "checkpoint": str(tiny.path),
            "data": [str(path)],
            "out": str(tmp_path / "out"),
            "max_tokens": 60,
            "trainer": {**TRAINER, "max_steps": 1},
        },
        "test",
    )
    with pytest.raises(TrainingError, match=rf"{path}:1: the prompt has \d+ tokens with its answer, and 60 fit"):
        finetune(settings)


def test_presets_are_valid_and_their_trainer_settings_exist():
    assert {"pisco", "tinypedia-words"} <= presets("pretrain").keys()
    assert {"oscar", "pisco", "tinypedia"} <= presets("finetune").keys()
    for kind, load in (("pretrain", load_pretraining), ("finetune", load_finetuning)):
        for name in presets(kind):
            config = load(name)
            # Its bf16 is for a GPU.
            on_cpu = config.model_copy(update={"trainer": {**config.trainer, "use_cpu": True}})
            stages._arguments(on_cpu, Path("unused"))
