import pytest
import torch

from pisco_index import ConfigError
from pisco_index.model.device import choose_device


def test_auto_takes_a_gpu_where_there_is_one(monkeypatch):
    for available, expected in ((True, "cuda"), (False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda available=available: available)
        assert choose_device("auto") == expected


def test_a_device_is_taken_as_named():
    assert choose_device("cpu") == "cpu"


@pytest.mark.parametrize("name", ["cuda:99", "gpu", ""])
def test_a_device_that_is_not_there_is_an_error(name):
    with pytest.raises(ConfigError, match=f"{name!r} is"):
        choose_device(name)
