"""What a contestant's process says to the benchmark: JSON lines on stdout, commands on stdin.

Its first line is `{"ready": ...}`, once imports, data and model stand. `train` is answered with the examples and
the seconds of one slice, `loss` with the validation loss; at the end of stdin it leaves. Standard library and
numpy only: a contestant may live in an environment of its own.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Task:
    """One VAE on one data set: n_pixels-hidden-latent, ReLU, Adam."""

    train: Pixels
    """(N, D) uint8, 0..255; N is a multiple of the batch, so an epoch is full batches only."""
    valid: Pixels
    """(M, D)"""
    hidden: int
    latent: int
    batch: int
    steps: int
    """Of a slice; all but `ours` and `limit` train an epoch a slice whatever it says."""
    threads: int
    lr: float = 1e-3

    @property
    def epoch_steps(self) -> int:
        return len(self.train) // self.batch


def read_task(arguments: argparse.Namespace) -> Task:
    """The task that the command line describes."""
    with np.load(arguments.data) as arrays:
        train, valid = arrays["train"], arrays["valid"]
    return Task(
        train,
        valid,
        arguments.hidden,
        arguments.latent,
        arguments.batch,
        arguments.steps or len(train) // arguments.batch,
        arguments.threads,
    )


def parser() -> argparse.ArgumentParser:
    """The options that every contestant understands."""
    parse = argparse.ArgumentParser()
    parse.add_argument("--data", type=Path, required=True, help=".npz with uint8 arrays train and valid")
    parse.add_argument("--hidden", type=int, default=500)
    parse.add_argument("--latent", type=int, default=30)
    parse.add_argument("--batch", type=int, default=256)
    parse.add_argument("--steps", type=int, default=0)
    parse.add_argument("--threads", type=int, default=1)
    parse.add_argument("--cpus", type=lambda text: {int(cpu) for cpu in text.split(",")}, default=None)
    parse.add_argument("--bf16", action="store_true")
    parse.add_argument("--compile", action="store_true")
    parse.add_argument("--tensors", action="store_true", help="plain: samples are tensors, not images")
    return parse


class Channel:
    """The contestant's end. What libraries print goes to stderr, so that stdout carries answers alone."""

    def __init__(self) -> None:
        self._out = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)
        self._examples = 0
        self._began = self._cpu_began = self._cpu_rested = 0.0

    def ready(self, *libraries: str, parameters: int) -> None:
        """Tell that training can begin."""
        versions = {name: str(importlib.import_module(name).__version__) for name in libraries}
        self._say({"ready": True, "versions": versions, "parameters": int(parameters)})
        self._cpu_rested = time.process_time()

    def wait_for_train(self, loss: Callable[[], float | None]) -> None:
        """Answer all that is asked until a slice is wanted; the clock runs from then. Ends the process with
        the benchmark."""
        for line in iter(sys.stdin.readline, ""):
            if line.strip() == "train":
                self._cpu_began = time.process_time()
                self._began = time.perf_counter()
                return
            self._say({"loss": loss(), "examples": self._examples})
        self._out.close()
        os._exit(0)  # from within a library's callback, with threads of its own

    def trained(self, examples: int) -> None:
        """Stop the clock and answer."""
        now = time.perf_counter()
        cpu = time.process_time()
        self._examples += examples
        answer = {
            "examples": examples,
            "seconds": now - self._began,
            "cpu_seconds": cpu - self._cpu_began,  # of all threads
            "idle_cpu_seconds": self._cpu_began - self._cpu_rested,  # since the last answer
        }
        self._say(answer)
        self._cpu_rested = time.process_time()

    def serve(self, train: Callable[[], int], loss: Callable[[], float | None]) -> None:
        """For a contestant that owns its loop: train() does one slice and returns its examples."""
        while True:
            self.wait_for_train(loss)
            self.trained(train())

    def _say(self, answer: dict[str, Any]) -> None:
        self._out.write(json.dumps(answer) + "\n")
        self._out.flush()


def start() -> tuple[argparse.Namespace, Channel]:
    """The arguments and the channel, with this process held to its processors; before any heavy import."""
    channel = Channel()
    arguments = parser().parse_args()
    if arguments.cpus and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, arguments.cpus)
    os.environ["OMP_NUM_THREADS"] = str(arguments.threads)
    return arguments, channel
