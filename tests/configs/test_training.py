"""Settings of training that contradict each other."""

import pytest

from pisco_index.configs import load_finetuning, load_pretraining
from pisco_index.errors import ConfigError


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"windows": [8, 0], "autoencoding": 1}, r"windows: each must be at least 1, not \[8, 0\]"),
        ({"windows": [8, 2]}, "windows: each must be at least 3 to be continued, or autoencoding 1, not"),
        (
            {"windows": [33], "compression": {"max_length": 32, "on_long": "truncate"}},
            r"windows: none may exceed compression\.max_length \(32\) if on_long is truncate",
        ),
        ({"autoencoding": 2, "compression": {"max_length": 0}}, "autoencoding: "),
    ],
)
def test_windows_that_cannot_be_learned_are_named(values, message):
    with pytest.raises(ConfigError, match=message):
        load_pretraining(None, values)


def test_windows_that_can_be_learned_are_accepted():
    assert load_pretraining(None, {"windows": [1, 2], "autoencoding": 1}).windows == (1, 2)
    fitting = {"windows": [3, 32], "compression": {"max_length": 32, "on_long": "truncate"}}
    assert load_pretraining(None, fitting).windows == (3, 32)


def test_passages_that_begin_with_the_question_cannot_repeat_the_title():
    with pytest.raises(ConfigError, match=r"compression\.repeat_title must be false"):
        load_finetuning(None, {"query_dependent": True, "compression": {"repeat_title": True}})
