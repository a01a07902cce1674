"""transformers' Trainer as both stages use it: its settings, exact resuming, signals, and checks for finite weights."""

import logging
import math
import multiprocessing
import os
import signal
from collections.abc import Callable
from dataclasses import fields
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainerCallback, TrainingArguments

from ..configs import TrainingConfig
from ..errors import ConfigError, TrainingError
from ..interrupt import SIGNALS, Interrupt
from ..model.trainable import TrainableModel
from .ahead import Ahead
from .collators import Collator

log = logging.getLogger("pisco_index")

AHEAD_FILE = "ahead_{}.pt"
# Settings that the stages rely on, and that a configuration cannot change.
OWN_ARGUMENTS = {
    "output_dir": None,
    "remove_unused_columns": False,
    "label_names": ["labels"],
    "logging_nan_inf_filter": False,
}
# Settings that divide a model over processes, which a stage does not support.
NOT_SUPPORTED = ("deepspeed", "fsdp")
DEFAULT_ARGUMENTS = {"report_to": "none", "save_total_limit": 2, "logging_steps": 50}
# A new folder, because a saved state keeps its learning rate.
ADVICE = "Start in a new folder with a smaller learning_rate, more warmup_steps, or a smaller max_grad_norm."


def training_arguments(config: TrainingConfig, folder: Path) -> TrainingArguments:
    """Return the Trainer's arguments for a configuration.

    Args:
        config: settings of the training; its ``trainer`` goes over the defaults.
        folder: folder for the Trainer's states.

    Raises:
        ConfigError: a key of ``trainer`` is unknown, not supported or wrong.
    """
    _check_keys(config.trainer)
    values: dict[str, Any] = {**DEFAULT_ARGUMENTS, **config.trainer, **OWN_ARGUMENTS, "output_dir": str(folder)}
    try:
        arguments = TrainingArguments(**values)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"trainer: {error}") from None
    if arguments.eval_strategy != "no":
        raise ConfigError("trainer.eval_strategy must be no: a stage has training data, and none to evaluate on.")
    if arguments.n_gpu > 1:
        log.warning(
            "One of %d GPUs is used. To use several, start the command with a launcher (docs/training.md).",
            arguments.n_gpu,
        )
        # The Trainer would divide each batch among the GPUs, and send passages to other GPUs than their prompts.
        arguments._n_gpu = 1
    return arguments


def _check_keys(trainer: dict[str, Any]) -> None:
    known = {field.name for field in fields(TrainingArguments) if field.init}
    for key, value in trainer.items():
        if key in OWN_ARGUMENTS:
            raise ConfigError(f"trainer.{key} is set by the stage itself.")
        if key not in known:
            near = get_close_matches(key, known - set(OWN_ARGUMENTS), n=1)
            hint = f"; did you mean {near[0]}?" if near else "."
            raise ConfigError(f"trainer.{key} is no setting of TrainingArguments{hint}")
        if key in NOT_SUPPORTED and value:
            raise ConfigError(f"trainer.{key} is not supported: each process trains both models as a whole.")


class StageTrainer(Trainer):
    """transformers' Trainer for a stage of training.

    It stops when the loss or a weight is not finite, and a resumed training draws the same random numbers as an
    undisturbed one.

    Args:
        model: model to train.
        collator: collator that makes the batches.
        options: see ``transformers.Trainer``.
    """

    def __init__(self, model: TrainableModel, collator: Collator, **options: Any):
        self.ahead = Ahead(collator)
        self._generators_are_set = False
        # Shared with the data loader's worker processes.
        self._is_training = multiprocessing.RawValue("b", 0)
        super().__init__(model=model, data_collator=self.ahead, **options)

    def train_from(self, state: str | None) -> None:
        """Train from the saved state in a folder, or from the start if it is None."""
        if state is not None:
            log.info("Resuming from %s.", state)
        path = None if state is None else Path(state) / AHEAD_FILE.format(self.args.process_index)
        if path is not None and path.is_file():
            self.ahead.repeat(torch.load(path, weights_only=True), lambda: self._set_generators(state))
        self._is_training.value = 1
        try:
            self.train(resume_from_checkpoint=state)
        finally:
            self._is_training.value = 0

    def _set_generators(self, state: str | None) -> None:
        super()._load_rng_state(state)
        self._generators_are_set = True

    def _load_rng_state(self, checkpoint: str | None) -> None:
        # The Trainer calls this after the first batches were made, when ``Ahead`` has set the generators already.
        if not self._generators_are_set:
            super()._load_rng_state(checkpoint)

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        torch.save(self.ahead.states, Path(output_dir) / AHEAD_FILE.format(self.args.process_index))

    def get_train_dataloader(self) -> Any:
        """Return the data loader, whose worker processes leave signals to the training process."""
        loader = super().get_train_dataloader()
        # accelerate's loader wraps torch's.
        inner = getattr(loader, "base_dataloader", loader)
        inner.worker_init_fn = partial(_start_worker, self._is_training, inner.worker_init_fn)
        return loader

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        # A step can spoil the weights, and the loss shows it only one step later.
        require_finite(self.model, self.state.global_step)
        super()._save_checkpoint(*args, **kwargs)

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Run one forward and backward pass, and return its loss.

        Raises:
            TrainingError: the loss is not finite.
        """
        self.ahead.used()
        loss = super().training_step(*args, **kwargs)
        if not math.isfinite(loss.item()):
            raise TrainingError(f"the loss is {loss.item()} at step {self.state.global_step + 1}. {ADVICE}")
        return loss


def require_finite(model: Any, step: int) -> None:
    """Check that all trained weights are finite.

    Raises:
        TrainingError: naming the first tensor that is not.
    """
    for name, values in model.named_parameters():
        if values.requires_grad and not torch.isfinite(values).all():
            raise TrainingError(f"{name} is no longer finite after step {step} and is not saved. {ADVICE}")


def _start_worker(is_training: Any, start: Callable[[int], None] | None, number: int) -> None:
    def stay(*_: Any) -> None:
        # A terminal and most schedulers signal the whole process group, and a training whose workers have ended cannot
        # save its state. After the training, the same signal must end its workers.
        if not is_training.value:
            os._exit(0)

    for each in SIGNALS:
        signal.signal(each, stay)
    if start is not None:
        start(number)


class StopOnSignal(TrainerCallback):
    """Saves the state and stops the training after a signal, in all processes at the same step.

    Attributes:
        stopped: True if a signal reached any of the processes.
    """

    def __init__(self, interrupt: Interrupt):
        self.interrupt = interrupt
        self.stopped = False

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:  # noqa: ARG002
        """Ask the Trainer to save and stop if a signal came."""
        self.stopped = self.interrupt.requested
        if args.world_size > 1:
            came = torch.tensor(float(self.stopped), device=args.device)
            torch.distributed.all_reduce(came)
            self.stopped = bool(came)
        if self.stopped:
            control.should_save = control.should_training_stop = True
        return control


class GivenIntervals(TrainerCallback):
    """Logs and saves at the intervals of the arguments, even if a saved state has others."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Replace the intervals in the state."""
        state.compute_steps(args, state.max_steps)
