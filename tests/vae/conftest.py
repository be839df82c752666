"""What several tests of `vae` begin with."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from vae.data.dataset import Dataset, load


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """The promise of equal bits is for one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load("digits")
