"""The two stages: pretraining and fine-tuning, on transformers' Trainer.

``out`` is the trained checkpoint's folder. While a stage runs, ``out/training/`` holds the data as read, the Trainer's
own checkpoints and its log; the checkpoint's files appear in ``out`` when the stage ends. The same call again goes on
from the Trainer's last checkpoint.
"""

import atexit
import hashlib
import json
import logging
import math
import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import fields
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import set_seed

from ..configs import FinetuningConfig, PretrainingConfig, TrainingConfig
from ..errors import ConfigError, InputError, TrainingError, TrainingInterruptedError
from ..model.families.pisco import Checkpoint, local_folder
from ..model.trainable import TrainableModel
from ..pipeline.interrupt import SIGNALS, Interrupt
from .ahead import Ahead
from .collators import Collator, Pretraining, QueryDependent, QuestionAnswering
from .data import Records, conversations, texts, write_records

log = logging.getLogger("pisco_index")

RUN_FOLDER = "training"
STATE_FILE = "trainer_state.json"
AHEAD_FILE = "ahead_{}.pt"
# What a stage that is done was about to put into ``out``.
PUBLISHED_FILE = "published.json"
# What the stage itself decides; a configuration cannot.
OWN_ARGUMENTS = {
    "output_dir": None,
    "remove_unused_columns": False,
    "label_names": ["labels"],
    "logging_nan_inf_filter": False,
}
# What divides a model over processes.
NOT_SUPPORTED = ("deepspeed", "fsdp")
DEFAULT_ARGUMENTS = {"report_to": "none", "save_total_limit": 2, "logging_steps": 50}


def pretrain(config: PretrainingConfig, *, collator: Collator | None = None) -> Checkpoint:
    """Teach memory to carry a text: auto-encoding and continuation over a corpus.

    Args:
        config: where from, where to, and how.
        collator: makes batches of ``{"title", "text"}`` records in place of ``Pretraining``.

    Returns:
        The trained checkpoint.

    Raises:
        ConfigError: for a missing path or a Trainer setting that does not exist.
        TrainingError: for data that cannot be used, another training's folder, or a loss that is no number.
        TrainingInterruptedError: after a signal; the state is saved and the same call goes on.
    """
    checkpoint = Checkpoint(_given(config, "checkpoint"))
    if collator is None:
        collator = Pretraining(
            checkpoint,
            config.compression,
            ratio=config.autoencoding,
            windows=config.windows,
            max_tokens=_max_tokens(config, checkpoint),
        )
    return _train(config, checkpoint, collator)


def finetune(config: FinetuningConfig, *, collator: Collator | None = None) -> Checkpoint:
    """Teach the decoder to answer from memory: questions, their documents, a teacher's answers.

    Args:
        config: where from, where to, and how.
        collator: makes batches of ``{"documents", "turns"}`` records in place of ``QuestionAnswering``.

    Returns:
        The trained checkpoint.

    Raises:
        ConfigError, TrainingError, TrainingInterruptedError: as ``pretrain``.
    """
    checkpoint = Checkpoint(_given(config, "checkpoint"))
    if collator is None:
        kind = QueryDependent if config.query_dependent else QuestionAnswering
        collator = kind(
            checkpoint,
            config.compression,
            text_ratio=config.text_ratio,
            max_tokens=_max_tokens(config, checkpoint),
        )
    return _train(config, checkpoint, collator)


def is_finished(config: TrainingConfig) -> bool:
    """Whether ``out`` holds a checkpoint already: the stage then returns it and does nothing."""
    return bool(config.out) and (Path(config.out) / "config.json").is_file()


class StageTrainer(Trainer):
    """transformers' Trainer, which ends when the loss or a weight is no number, and resumed draws on as if undisturbed.

    Args:
        model: what is trained.
        collator: makes the batches.
        options: see ``transformers.Trainer``.
    """

    def __init__(self, model: TrainableModel, collator: Collator, **options: Any):
        self.ahead = Ahead(collator)
        self._generators_are_set = False
        # Workers read it.
        self._training = multiprocessing.RawValue("b", 0)
        super().__init__(model=model, data_collator=self.ahead, **options)

    def go_on(self, folder: str | None) -> None:
        """Train, from a saved state where there is one."""
        if folder is not None:
            log.info("Going on from %s.", folder)
        path = None if folder is None else Path(folder) / AHEAD_FILE.format(self.args.process_index)
        if path is not None and path.is_file():
            self.ahead.repeat(torch.load(path, weights_only=True), lambda: self._set_generators(folder))
        self._training.value = 1
        try:
            self.train(resume_from_checkpoint=folder)
        finally:
            self._training.value = 0

    def _set_generators(self, folder: str | None) -> None:
        super()._load_rng_state(folder)
        self._generators_are_set = True

    def _load_rng_state(self, checkpoint: str | None) -> None:
        # The Trainer does it when the first batches are made already.
        if not self._generators_are_set:
            super()._load_rng_state(checkpoint)

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        torch.save(self.ahead.states, Path(output_dir) / AHEAD_FILE.format(self.args.process_index))

    def get_train_dataloader(self) -> Any:
        """The data's loader, whose worker processes leave signals to the training's own."""
        loader = super().get_train_dataloader()
        # accelerate's loader holds torch's.
        inner = getattr(loader, "base_dataloader", loader)
        inner.worker_init_fn = partial(_start_worker, self._training, inner.worker_init_fn)
        return loader

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        # A step may spoil the weights, which the loss shows one step later.
        _require_finite(self.model, self.state.global_step)
        super()._save_checkpoint(*args, **kwargs)

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """One forward and backward pass."""
        self.ahead.used()
        loss = super().training_step(*args, **kwargs)
        if not math.isfinite(loss.item()):
            raise TrainingError(f"The loss is {loss.item()} at step {self.state.global_step + 1}. {CALMER}")
        return loss


# A saved state has its learning rate in it.
CALMER = "Start in a new folder with a smaller learning_rate, more warmup_steps, or a smaller max_grad_norm."


def _require_finite(model: Any, step: int) -> None:
    for name, values in model.named_parameters():
        if values.requires_grad and not torch.isfinite(values).all():
            raise TrainingError(f"{name} is no longer finite after step {step} and is not saved. {CALMER}")


def _start_worker(training: Any, start: Callable[[int], None] | None, number: int) -> None:
    def stay(*_: Any) -> None:
        # A terminal and most schedulers signal a whole process group, and without its workers the training cannot save
        # a state. Afterwards this is how it ends them.
        if not training.value:
            os._exit(0)

    for each in SIGNALS:
        signal.signal(each, stay)
    if start is not None:
        start(number)


class StopOnSignal(TrainerCallback):
    """Saves the state and ends the training at the step in which a signal comes, in all processes at the same.

    Attributes:
        stopped: whether one came to any of them.
    """

    def __init__(self, interrupt: Interrupt):
        self.interrupt = interrupt
        self.stopped = False

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:  # noqa: ARG002
        """Ask the Trainer to save and stop."""
        self.stopped = self.interrupt.requested
        if args.world_size > 1:
            came = torch.tensor(float(self.stopped), device=args.device)
            torch.distributed.all_reduce(came)
            self.stopped = bool(came)
        if self.stopped:
            control.should_save = control.should_training_stop = True
        return control


class GivenIntervals(TrainerCallback):
    """Logs and saves as often as the arguments say, where a saved state says otherwise."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Set the state's own copies of them."""
        state.compute_steps(args, state.max_steps)


def _train(config: TrainingConfig, checkpoint: Checkpoint, collator: Collator) -> Checkpoint:
    out = Path(_given(config, "out"))
    folder = out / RUN_FOLDER
    if is_finished(config):
        _require_same_settings(folder, config, checkpoint)
        log.info("%s: finished before; nothing is done.", out)
        return Checkpoint(out)
    _require_own(out)
    arguments = _arguments(config, folder)
    set_seed(arguments.seed)
    with arguments.main_process_first(local=False):
        records = _prepare(folder, config, checkpoint)
    if torch.distributed.is_initialized():
        # Its threads take up Python's lock now and then, and one that does so in an interpreter that ends aborts it.
        atexit.register(_leave_process_group)
    model = TrainableModel(
        checkpoint,
        decoder=config.decoder,
        lora_dropout=config.lora_dropout,
        base_dtype=torch.bfloat16 if arguments.bf16 else torch.float32,
    )
    if config.compile:
        model.compile_models()
    with Interrupt() as interrupt:
        stop = StopOnSignal(interrupt)
        callbacks = [stop, GivenIntervals()]
        trainer = StageTrainer(model, collator, args=arguments, train_dataset=records, callbacks=callbacks)
        try:
            trainer.go_on(_last_state(folder))
        except InputError as error:
            raise _plain(error) from None
        if stop.stopped:
            raise TrainingInterruptedError(
                f"Stopped by a signal after step {trainer.state.global_step}; the state is saved in {folder}. "
                "The same command goes on from it."
            )
    _require_finite(model, trainer.state.global_step)
    if trainer.is_world_process_zero():
        trainer.save_state()
        _publish(model, folder, out)
    trainer.accelerator.wait_for_everyone()
    return Checkpoint(out)


def _leave_process_group() -> None:
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _last_state(folder: Path) -> str | None:
    """The Trainer's last checkpoint that it finished: it writes ``trainer_state.json`` as the last file of one."""
    named = {path.name.removeprefix("checkpoint-"): path for path in folder.glob("checkpoint-*")}
    numbered = {int(number): path for number, path in named.items() if number.isdecimal()}
    for number in sorted(numbered, reverse=True):
        with suppress(OSError, ValueError):
            json.loads((numbered[number] / STATE_FILE).read_text("utf-8"))
            return str(numbered[number])
    return None


def _plain(error: InputError) -> InputError:
    """An error as it was raised: that of a data loader's worker process has a traceback in its message."""
    kind = type(error)
    message, where = str(error), f"{kind.__module__}.{kind.__qualname__}: "
    if message.startswith("Caught ") and where in message:
        return kind(message.rpartition(where)[2].strip())
    return error


def _given(config: TrainingConfig, key: str) -> Any:
    value = getattr(config, key)
    if not value:
        raise ConfigError(f"{key} is not given; name it in the configuration or on the command line.")
    return value


def _max_tokens(config: TrainingConfig, checkpoint: Checkpoint) -> int:
    return config.max_tokens or checkpoint.decoder_context


def _arguments(config: TrainingConfig, folder: Path) -> TrainingArguments:
    known = {field.name for field in fields(TrainingArguments) if field.init}
    for key in config.trainer:
        if key in OWN_ARGUMENTS or key not in known:
            near = get_close_matches(key, known - set(OWN_ARGUMENTS), n=1)
            reason = "is set by the stage itself" if key in OWN_ARGUMENTS else "is no setting of TrainingArguments"
            hint = f"; did you mean {near[0]}?" if near and key not in OWN_ARGUMENTS else "."
            raise ConfigError(f"trainer.{key} {reason}{hint}")
        if key in NOT_SUPPORTED and config.trainer[key]:
            raise ConfigError(f"trainer.{key} is not supported: each process trains both models as a whole.")
    values: dict[str, Any] = {**DEFAULT_ARGUMENTS, **config.trainer, **OWN_ARGUMENTS, "output_dir": str(folder)}
    try:
        arguments = TrainingArguments(**values)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"trainer: {error}") from None
    if arguments.eval_strategy != "no":
        raise ConfigError("trainer.eval_strategy must be no: a stage has data to train on, and no other.")
    if arguments.n_gpu > 1:
        log.warning("Of %d GPUs one is used. For more, start the command with a launcher.", arguments.n_gpu)
        # The Trainer would give each a part of the batch, and passages to another than their prompts.
        arguments._n_gpu = 1
    return arguments


def _require_own(out: Path) -> None:
    """Check that what is done in ``out`` can take nothing away that others put there."""
    folder, found = out / RUN_FOLDER, set()
    with suppress(FileNotFoundError, NotADirectoryError):
        found = {path.name for path in out.iterdir()}
    own = {RUN_FOLDER}
    if (folder / PUBLISHED_FILE).is_file():
        own |= set(json.loads((folder / PUBLISHED_FILE).read_text("utf-8")))
    foreign = folder.is_dir() and any(folder.iterdir()) and not (folder / "settings.json").is_file()
    if foreign or found - own or (out.exists() and not out.is_dir()):
        first = f": {min(found - own)}" if found - own else ""
        raise TrainingError(f"{out}: holds something that no training made{first}; name a new folder (out).")


def _prepare(folder: Path, config: TrainingConfig, checkpoint: Checkpoint) -> Records:
    """Read the data, once; an interrupted training goes on with what it has read."""
    records = folder / "records.arrow"
    if records.is_file():
        _require_same_settings(folder, config, checkpoint)
        return Records(records)
    paths: Sequence[str] = _given(config, "data")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "settings.json").write_text(json.dumps(_settings(config, checkpoint), indent=2) + "\n", "utf-8")
    if isinstance(config, PretrainingConfig):
        return write_records(records, texts(paths, config.corpus))
    return write_records(records, conversations(paths))


def _settings(config: TrainingConfig, checkpoint: Checkpoint) -> dict[str, Any]:
    """What a training must have the same to be gone on with."""
    kept = config.model_dump(mode="json", exclude={"checkpoint", "out", "compile", "trainer"})
    base = local_folder(checkpoint.resolve(checkpoint.decoder_base, "decoder"))
    weights = {path.name: path.stat().st_size for path in sorted(base.glob("*.safetensors"))}
    settings = {
        **kept,
        "checkpoint": checkpoint.identity,
        "decoder_state": _digest([checkpoint.path / "decoder_state.pt"]),
        "decoder_base": {"config": _digest([base / "config.json"]), "weights": weights},
    }
    paths = [Path(path) for path in config.data]
    if all(path.exists() for path in paths):
        # Once read, data is not needed any more.
        settings["data_content"] = _digest(
            file for path in paths for file in (sorted(path.rglob("*")) if path.is_dir() else [path]) if file.is_file()
        )
    return settings


def _digest(paths: Iterable[Path]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for path in paths:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "blake2b").digest())
    return digest.hexdigest()


def _require_same_settings(folder: Path, config: TrainingConfig, checkpoint: Checkpoint) -> None:
    path = folder / "settings.json"
    if not path.is_file():
        raise TrainingError(f"{folder.parent}: holds something that no training made; name a new folder (out).")
    begun = json.loads(path.read_text("utf-8"))
    now = _settings(config, checkpoint)
    if changed := [key for key in now if key in begun and begun[key] != now[key]]:
        raise TrainingError(
            f"{folder} belongs to a training with other settings, the first: {changed[0]} was "
            f"{begun.get(changed[0])!r} and is {now[changed[0]]!r}. Go on with those, or name a new folder."
        )


def _publish(model: TrainableModel, folder: Path, out: Path) -> None:
    """Write the checkpoint, and put its files into ``out``: config.json, which makes it one, last."""
    finished = folder / "finished"
    shutil.rmtree(finished, ignore_errors=True)
    model.save(finished)
    (folder / PUBLISHED_FILE).write_text(json.dumps(sorted(path.name for path in finished.iterdir())), "utf-8")
    for path in sorted(finished.iterdir(), key=lambda path: path.name == "config.json"):
        target = out / path.name
        if target.is_dir():
            shutil.rmtree(target)
        path.replace(target)
    finished.rmdir()
