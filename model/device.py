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
