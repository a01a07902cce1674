"""Choose the pool that a build's settings ask for."""

from collections.abc import Callable

import torch

from ...configs import RunConfig
from ..worker import WorkerSpec
from .in_process import InProcessPool
from .pool import Pool


def open_pool(spec: WorkerSpec, run: RunConfig, on_lost: Callable[[str, str], None]) -> Pool:
    """Start the workers of a build: in this process if one is enough, otherwise on Ray.

    Args:
        spec: everything a worker requires.
        run: number of workers, Ray address and limits.
        on_lost: callback that is given the name of each worker that was lost, and the reason.

    Raises:
        InputError: a worker cannot open what it is given, or there is no room for one.
    """
    several = run.workers is not None and run.workers > 1
    every_gpu = run.workers is None and spec.device == "cuda" and torch.cuda.device_count() > 1
    if run.ray is None and not several and not every_gpu:
        return InProcessPool(spec, hang_s=run.hang_seconds, attempts=run.attempts, on_lost=on_lost)
    # Imported here, because a build in this process does not need Ray and should not wait for it.
    from .ray_pool import RayPool

    return RayPool(spec, address=run.ray or "local", workers=run.workers, hang_s=run.hang_seconds, on_lost=on_lost)
