"""The device to compute on, and the dtype to compute in."""

import torch

from ..errors import ConfigError


def choose_device(name: str) -> str:
    """Check the name of a device and return it; ``auto`` gives a GPU if there is one, else the CPU.

    Raises:
        ConfigError: the name is unknown, or this machine has no such device.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise ConfigError(
            f"{name!r} is not a device to compute on; name cpu, cuda, cuda:1 or auto. NVIDIA GPUs are fast from "
            "compute capability 8.0 (Ampere) on. Older ones, and AMD's with torch for ROCm (named cuda too), pad their "
            "passages unless flash-attn is installed. Apple's (mps) are not supported: name cpu."
        )
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"{name!r} is not on this machine, which has {torch.cuda.device_count()} GPUs.")
    return name


def to_device(values: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return a tensor of the CPU on a device.

    A GPU gets it from pinned memory, so that the program does not wait for the copy; later work on the GPU does.
    """
    if device.type == "cuda":
        values = values.pin_memory()
    return values.to(device, non_blocking=True)


def compute_dtype(device: torch.device, dtype: torch.dtype) -> torch.dtype:
    """Return the dtype to compute in with weights of a dtype: float32 on CPUs that are no faster in bfloat16.

    These are Intel CPUs without AMX, and other x86-64 CPUs without AVX512-BF16. The weights keep their dtype.
    """
    if device.type != "cpu" or dtype != torch.bfloat16:
        return dtype
    able = torch.cpu.get_capabilities()
    has_units = able.get("amx_bf16") or (able.get("avx512_bf16") and "Intel" not in able.get("cpu_name", ""))
    return dtype if has_units or able.get("architecture") != "x86_64" else torch.float32
