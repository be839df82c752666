"""Where a command works: database, folders, device, workers and their threads."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from study.store.locations import Local, Location


@dataclass(frozen=True)
class Place:
    """Where a command works: not part of what is trained."""

    storage: str
    artifacts: Location
    data_dir: Path | None
    device: str
    workers: int
    threads: int = 1
    """Threads of each worker."""
    is_cluster: bool = False
    """Whether the workers run on a cluster, whose cores aren't this machine's."""

    @property
    def at_once(self) -> int:
        """Workers that the cores let run at the same time."""
        if self.is_cluster:
            return max(1, self.workers)
        return max(1, min(self.workers, cores() // self.threads))

    def for_worker(self) -> list[str]:
        """What a worker elsewhere is told of it on its command line; the URL comes by the environment."""
        options = ["--device", self.device, "--artifacts", str(self.artifacts)]
        return options + (["--data-dir", str(self.data_dir)] if self.data_dir else [])


def default_workers(device: str) -> int:
    """One worker a GPU where that is what the device means, else one a core. Raises UserError."""
    import torch

    from vae.devices import pick_device

    kind = pick_device(device).type
    if kind == "cpu":
        return cores()
    return torch.cuda.device_count() if kind == "cuda" and ":" not in device else 1


def default_threads(workers: int) -> int:
    """Threads of each worker: workers x threads <= cores, and no more than OMP_NUM_THREADS allows."""
    share = max(1, cores() // max(1, workers))
    # Its first number: OpenMP reads a list, a number for each level of nesting, and passes over anything else.
    allowed = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return min(share, int(allowed)) if allowed.isdecimal() and int(allowed) > 0 else share


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def require_writable(folder: Path, what: str) -> None:
    """Raises FailureError where no file can be written to a folder, which is there or would be made; leaves nothing.

    `what` is how the message begins: "The folder of the report"."""
    Local(folder).require_writable(what)
