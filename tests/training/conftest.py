"""A tiny random checkpoint, data to train it on, and short trainings."""

import os
import signal
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import pytest
import torch

from pisco_index import Checkpoint, new_tiny_checkpoint, open_checkpoint, pretrain
from pisco_index.configs import PretrainingConfig
from pisco_index.errors import TrainingInterruptedError
from pisco_index.training.collators import Pretraining
from pisco_index.training.tinypedia import conversations, write, write_conversations

TRAINER = {
    "use_cpu": True,
    "disable_tqdm": True,
    "per_device_train_batch_size": 4,
    "learning_rate": 2e-3,
    "lr_scheduler_type": "linear",
    "max_steps": 15,
    "save_steps": 5,
}


@pytest.fixture(scope="package", autouse=True)
def one_thread() -> Iterator[None]:
    """Models this small are slower on several threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="package")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return new_tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "checkpoint", rate=8)


@pytest.fixture(scope="package")
def tinypedia(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with corpus.jsonl, questions.jsonl, run.trec and conversations.jsonl."""
    folder = tmp_path_factory.mktemp("tinypedia")
    write(folder, "train", count=40)
    drawn = conversations("train", documents=(1, 2), questions=3)
    write_conversations(folder / "conversations.jsonl", islice(drawn, 40))
    return folder


@pytest.fixture
def lines(tmp_path: Path) -> Callable[..., Path]:
    """Write a file of lines: ``lines("{}", b"\\xff")``."""

    def write_lines(*content: str | bytes, name: str = "data.jsonl") -> Path:
        path = tmp_path / name
        path.write_bytes(b"".join((each.encode() if isinstance(each, str) else each) + b"\n" for each in content))
        return path

    return write_lines


@pytest.fixture(scope="package")
def pretraining(tiny: Checkpoint, tinypedia: Path) -> Callable[..., PretrainingConfig]:
    """Return settings of a short pretraining into a folder.

    It draws windows, tasks and dropout, saves every 5 steps, and its 15 steps cross the end of an epoch of 10.
    """

    def pretraining(out, *, checkpoint=tiny, data=tinypedia, trainer=None, **values):
        settings = {
            "checkpoint": str(checkpoint.path),
            "data": [str(data / "corpus.jsonl")],
            "out": str(out),
            "compression": {"max_length": 24, "template": "{text}"},
            "windows": [16, 48],
            **values,
            "trainer": {**TRAINER, **(trainer or {})},
        }
        return PretrainingConfig.parse(settings, "test")

    return pretraining


class SignalAtBatch(Pretraining):
    """Sends the process a signal while it makes a batch, the first one having number 1."""

    def __init__(self, config, number, batch):
        options = {"ratio": config.autoencoding, "windows": config.windows}
        super().__init__(open_checkpoint(config.checkpoint), config.compression, **options)
        self.signal, self.batches = number, batch

    def __call__(self, records):
        self.batches -= 1
        if self.batches == 0:
            os.kill(os.getpid(), self.signal)
        return super().__call__(records)


@pytest.fixture(scope="package")
def interrupt() -> Callable[..., None]:
    """Run a pretraining until a signal comes while it makes a batch."""

    def interrupt(settings, batch):
        with pytest.raises(TrainingInterruptedError, match=r"after step \d+; the state is saved"):
            pretrain(settings, collator=SignalAtBatch(settings, signal.SIGTERM, batch))

    return interrupt
