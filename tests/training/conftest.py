"""A tiny random checkpoint, and data to train it on."""

from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import pytest
import torch

from pisco_index import Checkpoint, new_tiny_checkpoint
from pisco_index.training.tinypedia import conversations, write, write_conversations


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
