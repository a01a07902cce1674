"""What a user sees of a running build."""

import io

import pytest
from rich.console import Console

from pisco_index.pipeline import progress as module
from pisco_index.pipeline.progress import progress_on


@pytest.mark.parametrize("terminal", [False, True], ids=["lines", "bars"])
def test_a_build_as_it_is_shown(terminal, monkeypatch):
    monkeypatch.setattr(module, "LINE_SECONDS", 0.0)
    screen = io.StringIO()
    shown = progress_on(Console(file=screen, force_terminal=terminal, width=200, color_system=None))
    shown.planning(2)
    shown.planned_records(1200)
    shown.started(5, 1, {1: 10, 2: 10, 3: 10, 4: 10}, "this process, cpu")
    shown.finished_shard(1, 300, 4000, 2_000_000)
    shown.finished_shard(2, 300, 4000, 2_000_000)
    shown.failed_shard(3, RuntimeError("no luck"), 1, False)
    shown.failed_shard(3, RuntimeError("no luck"), 3, True)
    shown.stopping()
    shown.ended()
    said = screen.getvalue()
    for words in (
        "600 documents",
        "4.0 MB",
        "3/5",
        "left",
        "no luck",
        "tried again",
        "given up",
        "stopping",
    ):
        assert words in said, words


def test_no_time_is_named_before_there_is_a_speed(monkeypatch):
    monkeypatch.setattr(module, "LINE_SECONDS", 0.0)
    screen = io.StringIO()
    shown = progress_on(Console(file=screen, force_terminal=False, width=200))
    shown.started(3, 0, {0: 10, 1: 10, 2: 10}, "here")
    shown.finished_shard(0, 1, 1, 1)
    assert "left" not in screen.getvalue()
