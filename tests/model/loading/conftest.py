"""Checks around every test of loading: nothing from a file runs, and no file makes the process take much memory."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pisco_index.errors import CheckpointError


@pytest.fixture(autouse=True)
def harmless(nothing_is_run: None, little_memory_is_taken: None) -> None:
    """Hold every test of loading to both."""


@pytest.fixture
def refused(tmp_path: Path) -> Callable[..., None]:
    """A function that checks that an action fails with a CheckpointError of one line that names a file."""

    def refused(message: str, action: Callable[..., Any], *arguments: Any) -> None:
        with pytest.raises(CheckpointError, match=message) as error:
            action(*arguments)
        assert "\n" not in str(error.value)
        assert str(tmp_path) in str(error.value)
        assert "Allocator" not in str(error.value)
        assert not isinstance(error.value.__cause__, MemoryError)

    return refused
