"""The evaluation grid, and why it is geometric."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vae.grid import evaluation_grid


def test_defaults():
    """About 180 points from 0.5 % of tau to exactly tau, in whole examples."""
    grid = evaluation_grid(480_000)
    assert grid.dtype == np.int64
    assert 178 <= grid.size <= 183
    assert grid[0] == 2400
    assert grid[-1] == 480_000


@settings(deadline=None)
@given(
    tau=st.integers(1, 10**12), ratio=st.floats(1.001, 3.0), start=st.floats(0.0005, 1.0, exclude_min=True)
)
def test_any_grid(tau: int, ratio: float, start: float):
    """Strictly rising from start * tau to tau, and no cell is wider than the ratio, rounding up aside."""
    grid = evaluation_grid(tau, ratio, start)
    assert grid[-1] == tau
    assert grid[0] >= 1
    assert abs(grid[0] - start * tau) <= 1 + 1e-9 * tau
    assert (np.diff(grid) >= 1).all()
    assert (grid[1:] <= grid[:-1] * ratio * (1 + 1e-9) + 1).all()


def test_small_budgets_keep_every_example_count():
    """Points that round to one count are one point: a tau of 10 examples has each of 1..10."""
    assert evaluation_grid(10).tolist() == list(range(1, 11))
    assert evaluation_grid(1).tolist() == [1]


@pytest.mark.parametrize(
    "bad", [{"tau": 0}, {"ratio": 1.0}, {"ratio": np.nan}, {"start": 0.0}, {"start": 1.1}]
)
def test_impossible_grids_are_refused(bad):
    """No budget, no progress or no start: an error that names the value."""
    with pytest.raises(ValueError, match=f"{next(iter(bad))}.*got {next(iter(bad.values()))}"):
        evaluation_grid(**({"tau": 1000} | bad))
