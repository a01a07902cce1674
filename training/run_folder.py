"""The folder of a training: its data as read, its settings, its saved states, and in the end its checkpoint."""

import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any

from transformers import TrainingArguments

from ..configs import PretrainingConfig, TrainingConfig
from ..errors import ConfigError, TrainingError
from ..model.families.pisco import PiscoCheckpoint
from ..model.identity import identity_as_stored
from ..model.loading.bases import local_folder
from ..model.trainable import TrainableModel
from ..places import input_paths, local_path
from ..reader.answering.model_digest import digest_model_folder
from .data import Records, read_conversations, read_texts, write_records

# Written by the Trainer as the last file of a saved state.
STATE_FILE = "trainer_state.json"
# Keys of ``trainer`` that may change when a training is resumed: its length, its intervals, and settings that have
# no part in what a step learns.
_MAY_CHANGE = frozenset(
    {
        "max_steps",
        "num_train_epochs",
        "disable_tqdm",
        "report_to",
        "run_name",
        "project",
        "push_to_hub",
        "debug",
        "skip_memory_metrics",
        "torch_empty_cache_steps",
        "use_cpu",
        "prediction_loss_only",
        "batch_eval_metrics",
        "enable_jit_checkpoint",
        "resume_from_checkpoint",
        "per_device_eval_batch_size",
        "local_rank",
        "dataloader_num_workers",
        "dataloader_pin_memory",
        "dataloader_persistent_workers",
        "dataloader_prefetch_factor",
    }
)
# Prefixes of further keys that may change. ``hub_token`` is also a secret, which must not be recorded.
_MAY_CHANGE_BEGINNINGS = (
    "save_",
    "eval_",
    "logging_",
    "log_",
    "hub_",
    "trackio_",
    "gradient_checkpointing",
    "activation_checkpointing",
    "torch_compile",
    "ddp_",
    "do_",
    "include_",
)


class RunFolder:
    """The folder ``out`` of a training.

    Args:
        config: settings of the training, with its ``out``.
        checkpoint: checkpoint that the training starts from.

    Attributes:
        out: folder that the files of the trained checkpoint appear in, at the end.
        states: folder ``out/training/`` with the data as read, the settings, and the Trainer's states and log.
    """

    def __init__(self, config: TrainingConfig, checkpoint: PiscoCheckpoint):
        self.config = config
        self.checkpoint = checkpoint
        self.out = local_path(required(config, "out"), TrainingError)
        self.states = self.out / "training"
        self._settings_file = self.states / "settings.json"
        # Names of the files that a finished training was about to put into ``out``.
        self._published_file = self.states / "published.json"

    def require_own(self) -> None:
        """Check that ``out`` holds nothing but what this program wrote, so that publishing removes no other file."""
        found = set()
        with suppress(FileNotFoundError, NotADirectoryError):
            found = {path.name for path in self.out.iterdir()}
        own = {self.states.name}
        if self._published_file.is_file():
            own |= set(json.loads(self._published_file.read_text("utf-8")))
        foreign = self.states.is_dir() and any(self.states.iterdir()) and not self._settings_file.is_file()
        if foreign or found - own or (self.out.exists() and not self.out.is_dir()):
            first = f": {min(found - own)}" if found - own else ""
            raise TrainingError(f"{self.out}: holds something that no training made{first}; name a new folder (out).")

    def prepare(self) -> Records:
        """Read the data. A resumed training takes the data that it has read before."""
        records = self.states / "records.arrow"
        if records.is_file():
            self.require_same_settings()
            return Records(records)
        paths = required(self.config, "data")
        self.states.mkdir(parents=True, exist_ok=True)
        self._settings_file.write_text(json.dumps(self._settings(), indent=2) + "\n", "utf-8")
        if isinstance(self.config, PretrainingConfig):
            return write_records(records, read_texts(paths, self.config.corpus))
        return write_records(records, read_conversations(paths))

    def require_same_settings(self) -> None:
        """Check that the training in this folder was begun with these settings, this checkpoint and this data."""
        if not self._settings_file.is_file():
            raise TrainingError(f"{self.out}: holds something that no training made; name a new folder (out).")
        begun = json.loads(self._settings_file.read_text("utf-8"))
        now = self._settings()
        now["checkpoint"] = identity_as_stored(self.checkpoint, begun.get("checkpoint", {}))
        for name, former, value in _differences(begun, now):
            raise TrainingError(
                f"{self.states}: the training was begun with other settings, the first: {name} was {former!r} and is "
                f"{value!r}. Restore the former settings, or name a new folder (out)."
            )

    def _settings(self) -> dict[str, Any]:
        """Return everything that must stay the same for a training to be resumed."""
        kept = self.config.model_dump(mode="json", exclude={"checkpoint", "out", "compile", "trainer"})
        base = local_folder(self.checkpoint.find_decoder_base())
        weights = {path.name: path.stat().st_size for path in sorted(base.glob("*.safetensors"))}
        settings = {
            **kept,
            "trainer": _lasting(self.config.model_dump(mode="json", include={"trainer"})["trainer"]),
            "checkpoint": self.checkpoint.identity,
            "decoder_state": _digest([self.checkpoint.path / "decoder_state.pt"]),
            "decoder_base": {"config": _digest([base / "config.json"]), "weights": weights},
            "decoder_base_digest": digest_model_folder(base),
        }
        paths = [path for place in self.config.data for path in input_paths(place, TrainingError)[1]]
        # Data that has been read may be deleted. It is then not compared.
        if all(path.exists() for path in paths):
            settings["data_content"] = _digest(
                file
                for path in paths
                for file in (sorted(path.rglob("*")) if path.is_dir() else [path])
                if file.is_file()
            )
        return settings

    def last_state(self) -> str | None:
        """Return the folder of the last state that was saved completely, or None."""
        named = {path.name.removeprefix("checkpoint-"): path for path in self.states.glob("checkpoint-*")}
        numbered = {int(number): path for number, path in named.items() if number.isdecimal()}
        for number in sorted(numbered, reverse=True):
            with suppress(OSError, ValueError):
                json.loads((numbered[number] / STATE_FILE).read_text("utf-8"))
                return str(numbered[number])
        return None

    def publish(self, model: TrainableModel) -> None:
        """Write the trained checkpoint, and move its files into ``out``: ``config.json``, which completes it, last."""
        finished = self.states / "finished"
        shutil.rmtree(finished, ignore_errors=True)
        model.save(finished)
        self._published_file.write_text(json.dumps(sorted(path.name for path in finished.iterdir())), "utf-8")
        for path in sorted(finished.iterdir(), key=lambda path: path.name == "config.json"):
            target = self.out / path.name
            if target.is_dir():
                shutil.rmtree(target)
            path.replace(target)
        finished.rmdir()


def required(config: TrainingConfig, key: str) -> Any:
    """Return the value of a key that has no default.

    Raises:
        ConfigError: the key is not given.
    """
    value = getattr(config, key)
    if not value:
        raise ConfigError(f"{key} is not given; name it in the configuration or on the command line.")
    return value


def _lasting(trainer: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of the Trainer that must stay the same."""
    return {
        key: value
        for key, value in trainer.items()
        if key not in _MAY_CHANGE and not key.startswith(_MAY_CHANGE_BEGINNINGS)
    }


def _differences(begun: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Yield the name, the former and the present value of each setting that changed.

    Settings that ``begun`` lacks are newer than it, and are not compared. Of ``trainer``, each key is a setting.
    """
    for name in (name for name in now if name in begun):
        if name == "trainer":
            keys = {**begun[name], **now[name]}
            # A key that states its default changes nothing.
            default = {each.name: each.default for each in fields(TrainingArguments)}
            pairs = (
                (f"{name}.{key}", *(each[name].get(key, default.get(key)) for each in (begun, now))) for key in keys
            )
        else:
            pairs = iter([(name, begun[name], now[name])])
        yield from (each for each in pairs if each[1] != each[2])


def _digest(paths: Iterable[Path]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for path in paths:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "blake2b").digest())
    return digest.hexdigest()
