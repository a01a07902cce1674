"""The Trainer's settings, and trainings whose loss or weights are not finite."""

from pathlib import Path

import pytest
import torch

from pisco_index import presets, pretrain
from pisco_index.configs import load_finetuning, load_pretraining
from pisco_index.errors import ConfigError, TrainingError
from pisco_index.training.trainer import training_arguments


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
def test_wrong_trainer_settings_are_named(pretraining, tmp_path, trainer, message):
    with pytest.raises(ConfigError, match=message):
        pretrain(pretraining(tmp_path, trainer=trainer))


def test_presets_are_valid_and_their_trainer_settings_exist():
    assert {"pisco", "tinypedia-words"} <= presets("pretrain").keys()
    assert {"oscar", "pisco", "tinypedia"} <= presets("finetune").keys()
    for kind, load in (("pretrain", load_pretraining), ("finetune", load_finetuning)):
        for name in presets(kind):
            config = load(name)
            # bf16 of a preset needs a GPU.
            on_cpu = config.model_copy(update={"trainer": {**config.trainer, "use_cpu": True}})
            training_arguments(on_cpu, Path("unused"))


def test_one_of_several_gpus_is_used(pretraining, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    arguments = training_arguments(pretraining(tmp_path, trainer={"use_cpu": False}), tmp_path)
    assert arguments.n_gpu == 1
    assert arguments.train_batch_size == 4
    assert "One of 4 GPUs is used. To use several, start the command with a launcher" in caplog.text


def test_a_loss_that_is_not_finite_ends_the_training(pretraining, tmp_path):
    trainer = {"max_steps": 20, "learning_rate": 1e30, "max_grad_norm": 0}
    with pytest.raises(TrainingError, match=r"the loss is (nan|inf) at step \d+\. .* smaller learning_rate"):
        pretrain(pretraining(tmp_path, trainer=trainer))
    assert not (tmp_path / "config.json").exists()


@pytest.mark.parametrize("strategy", ["steps", "no"])
def test_weights_that_are_not_finite_are_not_saved(pretraining, tmp_path, strategy):
    # More than fp32 holds.
    trainer = {"max_steps": 1, "save_steps": 1, "learning_rate": 1e39, "save_strategy": strategy}
    with pytest.raises(TrainingError, match=r"no longer finite after step 1 and is not saved\. Start in a new folder"):
        pretrain(pretraining(tmp_path, trainer=trainer))
    assert sorted(path.name for path in tmp_path.rglob("*.safetensors")) == []


def test_steps_may_be_changed_on_the_way(pretraining, interrupt, tmp_path):
    interrupt(pretraining(tmp_path), batch=4)
    pretrain(pretraining(tmp_path, trainer={"max_steps": 8, "save_steps": 7}))
    assert {path.name for path in (tmp_path / "training").glob("checkpoint-*")} == {"checkpoint-7", "checkpoint-8"}
