"""Results as text and as JSON, and numbers in words."""

import io
import json
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

import pytest
from rich.console import Console
from rich.table import Table

from pisco_index.commands import console
from pisco_index.commands.console import (
    Output,
    ago,
    bar,
    count,
    describe_prediction,
    duration,
    fallbacks,
    printable,
    rows,
    say,
)
from pisco_index.store import Prediction


@dataclass
class Result:
    name: str
    sizes: tuple[int, ...]


class Report:
    def to_dict(self):
        return {"name": "é"}


def describe(result):
    yield f"[bold]{result.name}[/] :smile: " + 90 * "x"
    table = Table("size", box=None)
    for each in result.sizes:
        table.add_row(str(each))
    yield table


@pytest.mark.parametrize(
    ("result", "shown"),
    [
        (Result("é", (1, 2)), '{\n  "name": "é",\n  "sizes": [\n    1,\n    2\n  ]\n}\n'),
        (Report(), '{\n  "name": "é"\n}\n'),
        ([], "[]\n"),
    ],
)
def test_json_of_a_result(capsys, result, shown):
    Output(as_json=True).show(result, describe)
    Output(as_json=True).show(result, describe, on_one_line=True)
    out = capsys.readouterr().out
    assert out.startswith(shown)
    assert json.loads(out.removeprefix(shown)) == json.loads(shown)
    assert out.removeprefix(shown).count("\n") == 1


def test_json_is_json_in_every_encoding(monkeypatch):
    shown = io.TextIOWrapper(io.BytesIO(), "ascii", errors="backslashreplace")
    monkeypatch.setattr(console, "out", Console(file=shown))
    Output(as_json=True).show(Result("ź é 😀", ()), describe)
    shown.flush()
    assert json.loads(shown.buffer.getvalue())["name"] == "ź é 😀"


def test_text_of_a_result_is_printed_as_it_is_on_one_line(capsys):
    Output(as_json=False).show(Result("é", (1, 2)), describe)
    assert capsys.readouterr().out.splitlines()[:2] == ["[bold]é[/] :smile: " + 90 * "x", " size "]


def test_a_terminal_is_cleared_for_text_only(monkeypatch):
    terminal = Console(file=io.StringIO(), force_terminal=True)
    monkeypatch.setattr(console, "out", terminal)
    Output(as_json=True).clear()
    assert not terminal.file.getvalue()
    Output(as_json=False).clear()
    assert "\x1b[2J" in terminal.file.getvalue()


def test_a_bar_is_drawn_on_a_terminal_only(monkeypatch):
    for is_terminal in (True, False):
        shown = io.StringIO()
        monkeypatch.setattr(console, "err", Console(file=shown, force_terminal=is_terminal, width=80))
        with bar("rows") as progress:
            progress(3, 4)
        assert ("3/4" in shown.getvalue()) == is_terminal


def test_rows_stand_below_each_other(capsys):
    for row in rows({"a": "1", "long": "[2]", "none": ""}):
        say(row)
    assert capsys.readouterr().out == "a     1\nlong  [2]\nnone\n"


def test_numbers_in_words():
    assert (count(1, "shard"), count(1200, "shard")) == ("1 shard", "1,200 shards")
    assert duration(170.4) == "0:02:50"
    assert ago((datetime.now(UTC) - timedelta(seconds=61)).isoformat()).startswith("0:01:0")
    assert ago((datetime.now(UTC) + timedelta(seconds=61)).isoformat()) == "0:00:00 ago"
    assert fallbacks({}) == ""
    assert fallbacks({"int8": 1, "bf16": 2}) == "; written by another codec: 2 documents in bf16, 1 document in int8"
    assert printable("a\x1b[2J\tb\n") == "a\\x1b[2J\tb\n"


@pytest.mark.parametrize(
    ("error", "lossy", "fallen", "more", "shown"),
    [
        (
            *(-43.7, True, 0.0, {"kl": 0.00123, "kl_worst": 0.0041, "kl_documents": 64}),
            "normalised error -43.7 dB, KL 0.0012 nats, worst document 0.0041, measured on 64 documents through the "
            "checkpoint's decoder",
        ),
        (
            *(-9.0, True, 0.0, {"fitted_to_decoder": False, "kl_missing": "the decoder is away"}),
            "normalised error -9.0 dB, fitted without the decoder, as klt is; no KL measured: the decoder is away",
        ),
        (-9.0, True, 0.0, {"fitted_to_decoder": True}, "normalised error -9.0 dB, fitted to the decoder"),
        (None, True, 0.25, {}, "loss unknown: the sample is too small; 25.0% of documents need a better codec"),
        (None, False, 0.0, {}, "nothing is lost"),
    ],
)
def test_a_prediction_in_words(error, lossy, fallen, more, shown):
    prediction = replace(Prediction("int8", 9, 8.125, error, lossy, None, fallen), **more)
    assert describe_prediction(prediction) == f"codec int8: 8.12 bits per value, {shown}"
