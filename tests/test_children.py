"""Child processes that run this package's own code."""

import pickle
import signal

import pytest

from pisco_index.children import ending, portable
from pisco_index.errors import CorpusError, PiscoIndexError


class RefusesError(Exception):
    """An error that cannot be made again from its message."""

    def __init__(self, line: int, *, column: int):
        super().__init__(f"line {line}, column {column}")


@pytest.mark.parametrize(
    ("code", "how"),
    [(1, "ended with exit code 1"), (-signal.SIGKILL, "died of SIGKILL"), (None, "ended with exit code None")],
)
def test_an_ending_names_the_signal_or_the_exit_code(code: int | None, how: str):
    assert ending(code) == how


def test_an_error_that_can_travel_stays_the_same():
    error = CorpusError("line 3 is no JSON")
    assert portable(error) is error


def test_an_error_that_cannot_travel_becomes_its_traceback():
    received = pickle.loads(pickle.dumps(portable(RefusesError(3, column=4))))
    assert isinstance(received, PiscoIndexError)
    assert "line 3, column 4" in str(received)
