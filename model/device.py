"""Which device to compute on."""

import torch

from ..errors import ConfigError


def choose_device(name: str) -> str:
    """The device named, or for ``auto`` a GPU where there is one.

    Raises:
        ConfigError: if it is not there.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise ConfigError(f"{name!r} is no device to compute on; name cpu, cuda, cuda:1 or auto.")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"{name!r} is not here; this machine has {torch.cuda.device_count()} GPUs.")
    return name


def arithmetic_for(device: torch.device, dtype: torch.dtype) -> torch.dtype:
    """What to compute in with weights of a dtype: float32 on CPUs that are no faster in 16 bits.

    These are Intel's without AMX, and all x86-64 ones without AVX512-BF16. The weights stay as they are.
    """
    if device.type != "cpu" or dtype != torch.bfloat16:
        return dtype
    able = torch.cpu.get_capabilities()
    has_units = able.get("amx_bf16") or (able.get("avx512_bf16") and "Intel" not in able.get("cpu_name", ""))
    return dtype if has_units or able.get("architecture") != "x86_64" else torch.float32
