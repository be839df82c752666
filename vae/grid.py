"""The evaluation grid: at which examples the validation loss is looked at."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt


def evaluation_grid(tau: int, ratio: float = 1.03, start: float = 0.005) -> npt.NDArray[np.int64]:
    """The geometric grid shared by all arms, from `start * tau` to tau: (n,) int64, counts of examples.

    Strictly increasing, the last point exactly tau; about 180 points at the defaults. No cell is wider
    than `ratio` (up to rounding to whole examples): the number of cells is rounded up and they are made
    equal, so tau closes a full cell and not a stub. A geometric grid has the same relative resolution for
    an arm that is four times faster; equal steps do not, and their interpolation error is then taken for
    a smaller speed-up. A tau of a few hundred examples has fewer points, for some fall together.

    The training evaluates at the first step boundary at or past each point.

    Raises ValueError for tau < 1, ratio <= 1 or start outside (0, 1].
    """
    if tau < 1:
        raise ValueError(f"tau must be at least 1 example, got {tau}")
    if not ratio > 1.0:
        raise ValueError(f"ratio must be above 1, got {ratio}")
    if not 0.0 < start <= 1.0:
        raise ValueError(f"start must be in (0, 1], a fraction of tau, got {start}")
    cells = math.ceil(math.log(1.0 / start) / math.log(ratio))
    points = tau * start ** np.linspace(1.0, 0.0, cells + 1)
    grid: npt.NDArray[np.int64] = np.unique(np.ceil(points).astype(np.int64))
    # start ** 0 is exactly 1, so the last point is tau; ceil keeps the first at 1 or more.
    return grid
