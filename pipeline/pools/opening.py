"""Choose the pool that a build's settings ask for."""

import torch

from ...configs import RunConfig
from ..watch.progress import BuildProgress
from ..worker import WorkerSpec
from .in_process import InProcessPool
from .pool import Pool


def open_pool(spec: WorkerSpec, run: RunConfig, progress: BuildProgress) -> Pool:
    """Start the workers of a build: in this process if one is enough, otherwise on Ray.

    Args:
        spec: everything a worker requires.
        run: number of workers, Ray address and limits.
        progress: listener that is notified of a cluster that was joined, and of workers that were lost.

    Raises:
        InputError: a worker cannot open what it is given, or there is no room for one.
    """
    several = run.workers is not None and run.workers > 1
    every_gpu = run.workers is None and spec.device == "cuda" and torch.cuda.device_count() > 1
    if run.ray is None and not several and not every_gpu:
        return InProcessPool(spec, hang_s=run.hang_seconds, attempts=run.attempts, on_lost=progress.lost_worker)
    # Imported here, because a build in this process does not need Ray and should not wait for it.
    from .ray_pool import RayPool

    return RayPool(
        spec,
        address=run.ray or "local",
        workers=run.workers,
        hang_s=run.hang_seconds,
        on_lost=progress.lost_worker,
        on_joined=progress.joined,
    )
