"""The device that a name means."""

from __future__ import annotations

import functools
import os
import platform
import re
from pathlib import Path

import torch

from vae.errors import UserError

#: What the seconds of bfloat16 must be read with.
NO_BF16_UNITS = "this processor has no bf16 units"


def pick_device(name: str, worker: int = 0) -> torch.device:
    """The device of that name; auto: cuda, then mps, then cpu. Of several GPUs a name without an index means
    another one for each worker (counted from 0). Raises UserError for one that is not there."""
    if name == "auto":
        if not torch.cuda.is_available():
            return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
        name = "cuda"
    if not re.fullmatch(r"cpu|mps|cuda(:\d+)?", name):
        raise UserError(f"--device {name}: choose auto, cpu, cuda, cuda:N or mps.")
    if name.startswith("cuda"):
        n, index = torch.cuda.device_count(), int(name[5:] or 0)
        if index >= n:
            raise UserError(f"--device {name}: this torch sees {n} CUDA devices. Use --device cpu or auto.")
    if name == "mps" and not torch.backends.mps.is_available():
        raise UserError("--device mps: this torch sees no Apple GPU. Use --device cpu.")
    return torch.device(f"cuda:{worker % n}" if name == "cuda" else name)


def machine(device: torch.device) -> dict[str, str | int]:
    """What seconds depend on beside the code: the processor's name, the cores that this process may use, torch's
    threads, the name of an accelerator if `device` is one, and whether bfloat16 had to be done in float32."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    found: dict[str, str | int] = {
        "processor": _processor(),
        "cores": cores,
        "threads": torch.get_num_threads(),
    }
    if device.type == "cuda":
        found["accelerator"] = torch.cuda.get_device_name(device)
    if not multiplies_bf16(device):
        found["bf16"] = NO_BF16_UNITS
    return found


def _processor() -> str:
    """The processor's name as Linux knows it, elsewhere as Python does: often its family only."""
    try:
        told = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        told = ""
    named = re.search(r"^model name\s*:\s*(\S.*)$", told, re.MULTILINE)
    return named[1].strip() if named else platform.processor() or platform.machine()


def multiplies_bf16(device: torch.device) -> bool:
    """Whether the device has units that multiply bfloat16. A processor without any takes ten times as long as with
    float32: its matrices are then to be multiplied in float32."""
    return device.type != "cpu" or _processor_multiplies_bf16()


@functools.cache
def _processor_multiplies_bf16() -> bool:
    if platform.machine() in {
        "x86_64",
        "AMD64",
    }:  # oneDNN says yes to every AVX-512, and widens what it is given
        return bool(torch.cpu._is_avx512_bf16_supported())
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
