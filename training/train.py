"""The two stages, pretraining and fine-tuning, on transformers' Trainer.

``out`` is the folder of the trained checkpoint. While a stage runs, ``out/training/`` holds the data as read, the
Trainer's own states and its log. The checkpoint's files appear in ``out`` when the stage ends. After an interruption,
the same call resumes from the Trainer's last state.
"""

import atexit
import logging

import torch
from transformers import TrainingArguments
from transformers.trainer_utils import set_seed

from ..configs import FinetuningConfig, PretrainingConfig, TrainingConfig
from ..errors import ConfigError, InputError, TrainingError, TrainingInterruptedError
from ..interrupt import Interrupt
from ..model.families.pisco import PiscoCheckpoint
from ..model.forward.failures import first_line, is_compiler_failure
from ..model.trainable import TrainableModel
from ..places import local_path
from .collators import Collator, Pretraining, QueryDependent, QuestionAnswering
from .data import Records
from .run_folder import RunFolder, required
from .trainer import GivenIntervals, StageTrainer, StopOnSignal, require_finite, training_arguments

log = logging.getLogger("pisco_index")


def pretrain(config: PretrainingConfig, *, collator: Collator | None = None) -> PiscoCheckpoint:
    """Teach memory to carry a text, by auto-encoding and continuation over a corpus.

    Args:
        config: checkpoint to start from, data, output folder and settings.
        collator: collator that makes batches of ``{"title", "text"}`` records; default: ``Pretraining``.

    Returns:
        The trained checkpoint.

    Raises:
        ConfigError: a path is missing, or a Trainer setting is unknown or wrong.
        TrainingError: the data cannot be used, the folder belongs to something else, or the loss is not finite.
        TrainingInterruptedError: a signal came; the state is saved, and the same call resumes.
    """
    checkpoint = PiscoCheckpoint(local_path(required(config, "checkpoint"), ConfigError))
    if collator is None:
        collator = Pretraining(
            checkpoint,
            config.compression,
            ratio=config.autoencoding,
            windows=config.windows,
            max_tokens=config.max_tokens or checkpoint.decoder_context,
        )
    return _train(config, checkpoint, collator)


def finetune(config: FinetuningConfig, *, collator: Collator | None = None) -> PiscoCheckpoint:
    """Teach the decoder to answer questions from memory, with a teacher's answers.

    Args:
        config: checkpoint to start from, data, output folder and settings.
        collator: collator that makes batches of ``{"documents", "turns"}`` records; default: ``QuestionAnswering``, or
            ``QueryDependent`` if the configuration asks for it.

    Returns:
        The trained checkpoint.

    Raises:
        ConfigError, TrainingError, TrainingInterruptedError: as ``pretrain``.
    """
    checkpoint = PiscoCheckpoint(local_path(required(config, "checkpoint"), ConfigError))
    if collator is None:
        kind = QueryDependent if config.query_dependent else QuestionAnswering
        collator = kind(
            checkpoint,
            config.compression,
            text_ratio=config.text_ratio,
            max_tokens=config.max_tokens or checkpoint.decoder_context,
        )
    return _train(config, checkpoint, collator)


def is_finished(config: TrainingConfig) -> bool:
    """Return True if ``out`` holds a checkpoint already. The stage then returns it and trains nothing."""
    return bool(config.out) and (local_path(config.out, ConfigError) / "config.json").is_file()


def _train(config: TrainingConfig, checkpoint: PiscoCheckpoint, collator: Collator) -> PiscoCheckpoint:
    folder = RunFolder(config, checkpoint)
    if is_finished(config):
        folder.require_same_settings()
        log.info("%s: this training is finished; nothing is done.", folder.out)
        return PiscoCheckpoint(folder.out)
    folder.require_own()
    arguments = training_arguments(config, folder.states)
    set_seed(arguments.seed)
    with arguments.main_process_first(local=False):
        records = folder.prepare()
    if torch.distributed.is_initialized():
        # The group's threads take Python's lock occasionally. Taken while the interpreter ends, it aborts the process.
        atexit.register(_leave_process_group)
    model = TrainableModel(
        checkpoint,
        decoder=config.decoder,
        lora_dropout=config.lora_dropout,
        base_dtype=torch.bfloat16 if arguments.bf16 else torch.float32,
    )
    if config.compile:
        model.compile_models()
    trainer = _run(model, collator, arguments, records, folder)
    require_finite(model, trainer.state.global_step)
    if trainer.is_world_process_zero():
        trainer.save_state()
        folder.publish(model)
    trainer.accelerator.wait_for_everyone()
    return PiscoCheckpoint(folder.out)


def _run(
    model: TrainableModel, collator: Collator, arguments: TrainingArguments, records: Records, folder: RunFolder
) -> StageTrainer:
    """Train to the last step, from the last saved state if there is one, and return the trainer."""
    with Interrupt() as interrupt:
        stop = StopOnSignal(interrupt)
        callbacks = [stop, GivenIntervals()]
        trainer = StageTrainer(model, collator, args=arguments, train_dataset=records, callbacks=callbacks)
        try:
            trainer.train_from(folder.last_state())
        except InputError as error:
            raise _plain(error) from None
        except RuntimeError as error:
            if not is_compiler_failure(error):
                raise
            if interrupt.requested:
                # A terminal's signal also ends the compiler.
                raise TrainingInterruptedError(
                    f"stopped by a signal during the compilation, after step {trainer.state.global_step}. Run the same "
                    "command again; it goes on from the last saved state."
                ) from None
            raise TrainingError(
                f"the models cannot be compiled: {first_line(error)}. Train without compile, or install a C++ compiler."
            ) from error
    if stop.stopped:
        raise TrainingInterruptedError(
            f"stopped by a signal after step {trainer.state.global_step}; the state is saved in {folder.states}. "
            "Run the same command again to resume."
        )
    return trainer


def _plain(error: InputError) -> InputError:
    """Return an error as it was raised: one from a data loader's worker process has a traceback in its message."""
    kind = type(error)
    message, where = str(error), f"{kind.__module__}.{kind.__qualname__}: "
    if message.startswith("Caught ") and where in message:
        return kind(message.rpartition(where)[2].strip())
    return error


def _leave_process_group() -> None:
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
