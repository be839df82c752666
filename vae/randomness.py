"""The random streams of one run, kept apart from each other, from other runs and from the caller."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vae.states import require_like


def streams(seed: int) -> tuple[int, int, int]:
    """Independent seeds for the weights, the steps (z, dropout, binarisation) and the order of examples."""
    state = np.random.SeedSequence(seed).generate_state(3, np.uint64)
    first, second, third = (int(value) >> 1 for value in state)
    return first, second, third


class RandomState:
    """The run's own state of torch's global generators, swapped in while its steps run.

    Dropout and compiled graphs draw from the global generator; swapping keeps a run's stream its own
    when several runs, or the caller, draw in turn."""

    def __init__(self, seed: int, device: torch.device) -> None:
        self._cuda = device if device.type == "cuda" else None
        with self._kept():
            torch.manual_seed(seed)
            self._state = self._read()

    @contextmanager
    def active(self) -> Iterator[None]:
        with self._kept():
            self._write(self._state)
            yield
            self._state = self._read()

    @contextmanager
    def _kept(self) -> Iterator[None]:
        before = self._read()
        try:
            yield
        finally:
            self._write(before)

    def _read(self) -> list[Tensor]:
        states = [torch.get_rng_state()]
        return [*states, torch.cuda.get_rng_state(self._cuda)] if self._cuda else states

    def _write(self, states: list[Tensor]) -> None:
        torch.set_rng_state(states[0])
        if self._cuda:
            torch.cuda.set_rng_state(states[1], self._cuda)

    def state_dict(self) -> list[Tensor]:
        return self._state

    def check(self, state: Any) -> None:
        """ValueError unless torch's generators take it; changes nothing."""
        require_like(state, self._state, "random")
        for part, device in zip(state, ("cpu", self._cuda), strict=False):
            try:
                torch.Generator(device).set_state(part.cpu())
            except RuntimeError as error:
                raise ValueError(f"random: {error}") from None

    def load_state_dict(self, state: list[Tensor]) -> None:
        """Takes over a state that `check` lets pass."""
        self._state = [part.cpu() for part in state]
