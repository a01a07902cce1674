import pytest
import torch

from pisco_index.errors import ConfigError
from pisco_index.model.device import choose_device, compute_dtype


def test_auto_takes_a_gpu_if_there_is_one(monkeypatch):
    for available, expected in ((True, "cuda"), (False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda available=available: available)
        assert choose_device("auto") == expected


def test_a_device_can_be_named():
    assert choose_device("cpu") == "cpu"


@pytest.mark.parametrize("name", ["cuda:99", "gpu", ""])
def test_an_unknown_or_missing_device_is_an_error(name):
    with pytest.raises(ConfigError, match=f"{name!r} is"):
        choose_device(name)


@pytest.mark.parametrize(
    ("able", "expected"),
    [
        ({"architecture": "x86_64", "cpu_name": "Intel Xeon", "avx512_bf16": True, "amx_bf16": True}, torch.bfloat16),
        ({"architecture": "x86_64", "cpu_name": "Intel Xeon", "avx512_bf16": True, "amx_bf16": False}, torch.float32),
        ({"architecture": "x86_64", "cpu_name": "AMD EPYC 9654", "avx512_bf16": True}, torch.bfloat16),
        ({"architecture": "x86_64", "cpu_name": "AMD Ryzen 7 5800X"}, torch.float32),
        ({"architecture": "aarch64"}, torch.bfloat16),
    ],
)
def test_a_cpu_that_is_no_faster_in_bfloat16_computes_in_float32(able, expected, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able)
    assert compute_dtype(torch.device("cpu"), torch.bfloat16) == expected
    assert compute_dtype(torch.device("cpu"), torch.float32) == torch.float32
    assert compute_dtype(torch.device("cuda"), torch.bfloat16) == torch.bfloat16
