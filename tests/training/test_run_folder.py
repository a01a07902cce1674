"""The folder of a training: it resumes only the same training, and removes no file that is not its own."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from pisco_index import open_checkpoint, pretrain
from pisco_index.errors import ConfigError, TrainingError
from pisco_index.training.run_folder import RunFolder


def folder_of(settings) -> RunFolder:
    return RunFolder(settings, open_checkpoint(settings.checkpoint))


def test_other_settings_are_an_error_that_names_the_first(pretraining, tmp_path):
    folder_of(pretraining(tmp_path)).prepare()
    with pytest.raises(TrainingError, match=r"other settings, the first: autoencoding was 0\.5 and is 0\.25"):
        folder_of(pretraining(tmp_path, autoencoding=0.25)).prepare()
    changeable = {"compile": True, "trainer": {"max_steps": 3}}
    assert len(folder_of(pretraining(tmp_path, **changeable)).prepare()) == 40


@pytest.mark.parametrize(
    ("trainer", "named"),
    [
        ({"learning_rate": 1e-3}, r"trainer\.learning_rate was 0\.002 and is 0\.001"),
        ({"weight_decay": 0.1}, r"trainer\.weight_decay was 0\.0 and is 0\.1"),
        ({"lr_scheduler_type": "cosine"}, r"trainer\.lr_scheduler_type was 'linear' and is 'cosine'"),
    ],
)
def test_other_settings_of_the_optimizer_are_an_error(pretraining, tmp_path, trainer, named):
    folder_of(pretraining(tmp_path)).prepare()
    with pytest.raises(TrainingError, match=f"other settings, the first: {named}"):
        folder_of(pretraining(tmp_path, trainer=trainer)).prepare()


def test_settings_that_change_no_step_may_change_and_secrets_are_not_recorded(pretraining, tmp_path):
    folder = folder_of(pretraining(tmp_path, trainer={"hub_token": "secret", "save_steps": 4}))
    folder.prepare()
    recorded = folder.states / "settings.json"
    assert "secret" not in recorded.read_text()
    changed = {
        "num_train_epochs": 2,
        "save_steps": 3,
        "logging_steps": 1,
        "report_to": "none",
        "use_cpu": False,
        "seed": 42,
    }
    assert folder_of(pretraining(tmp_path, trainer=changed)).prepare()


def test_a_training_that_recorded_no_optimizer_settings_goes_on(pretraining, tmp_path):
    folder = folder_of(pretraining(tmp_path))
    folder.prepare()
    recorded = folder.states / "settings.json"
    begun = json.loads(recorded.read_text())
    del begun["trainer"], begun["decoder_base_digest"]
    recorded.write_text(json.dumps(begun))
    assert folder_of(pretraining(tmp_path, trainer={"learning_rate": 1e-3})).prepare()


@pytest.mark.parametrize("changed", ["decoder_state", "decoder_base", "decoder_base_digest", "data_content"])
def test_another_decoder_or_changed_data_is_an_error(pretraining, tiny, tinypedia, tmp_path, changed):
    start = open_checkpoint(shutil.copytree(tiny.path, tmp_path / "start"))
    data = shutil.copytree(tinypedia, tmp_path / "data")
    settings = pretraining(tmp_path / "out", checkpoint=start, data=data)
    folder_of(settings).prepare()
    if changed == "decoder_state":
        state = start.load_decoder_state()
        torch.save({name: values + 1 for name, values in state.items()}, start.path / "decoder_state.pt")
    elif changed == "decoder_base":
        config = start.path / "base_decoder" / "config.json"
        config.write_text(config.read_text().replace("4096", "2048"))
    elif changed == "decoder_base_digest":
        # Weights of the same shapes have files of the same sizes.
        weights = start.path / "base_decoder" / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    else:
        corpus = data / "corpus.jsonl"
        corpus.write_text(corpus.read_text().replace("the", "teh"))
    with pytest.raises(TrainingError, match=f"other settings, the first: {changed} was"):
        folder_of(settings).prepare()


def test_data_that_was_read_may_be_deleted(pretraining, tinypedia, tmp_path):
    data = shutil.copytree(tinypedia, tmp_path / "data")
    settings = pretraining(tmp_path / "out", data=data)
    before = folder_of(settings).prepare()
    shutil.rmtree(data)
    after = folder_of(settings).prepare()
    assert [after[i] for i in range(len(after))] == [before[i] for i in range(len(before))]


@pytest.mark.parametrize("theirs", ["compressor/mine.txt", "notes.txt", "training/checkpoint-3/mine.txt"])
def test_a_folder_with_other_files_is_refused(pretraining, tmp_path, theirs):
    path = tmp_path / theirs
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("mine")
    with pytest.raises(TrainingError, match=r"holds something that no training made.*; name a new folder"):
        pretrain(pretraining(tmp_path))
    assert path.read_text() == "mine"


def test_a_checkpoint_that_no_training_made_is_refused(pretraining, tiny):
    with pytest.raises(TrainingError, match="holds something that no training made; name a new folder"):
        pretrain(pretraining(tiny.path))


def test_a_stage_that_was_stopped_while_it_published_resumes(pretraining, tmp_path, monkeypatch):
    settings = pretraining(tmp_path, trainer={"max_steps": 2})
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


@pytest.mark.parametrize("key", ["checkpoint", "data", "out"])
def test_a_key_without_default_must_be_given(pretraining, tmp_path, key):
    settings = pretraining(tmp_path).model_copy(update={key: ()})
    with pytest.raises(ConfigError, match=f"^{key} is not given"):
        pretrain(settings)
