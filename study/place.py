"""Where a command works: database, folders, device, workers and their threads."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch

from vae.devices import pick_device


@dataclass(frozen=True)
class Place:
    """Where a command works: not part of what is trained."""

    storage: str
    artifacts: Path
    data_dir: Path | None
    device: str
    workers: int

    @property
    def threads(self) -> int:
        """Threads of each worker: workers x threads <= cores."""
        return max(1, cores() // self.workers)


def default_workers(device: str) -> int:
    """One worker a GPU where that is what the device means, else one a core. Raises UserError."""
    kind = pick_device(device).type
    if kind == "cpu":
        return cores()
    return torch.cuda.device_count() if kind == "cuda" and ":" not in device else 1


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
