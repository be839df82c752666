"""A world to draw studies from: real learning curves of one data set at 24 learning rates and up to 22 seeds.

An arm of a known speed-up is the baseline with fewer examples to everything, so the true ratio of optima is known.
`benchmarks/data/README.md` says how the curves were made.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from study.statistics.curves import Array, Curve, targets_reached
from study.statistics.survival import censored

DATA = Path(__file__).parent / "data"
BASELINE, OUTPUT_BIAS = "digits-baseline", "digits-output-bias"
#: The first seeds of each learning rate, on which the constants of guided tuning were chosen.
CHOSEN_ON = 14
#: Trainings were stopped below this loss, nats: no target may lie there.
STOPPED_AT = 24.45
#: An arm's seed is the baseline's row with this probability: the correlation measured between two arms on one seed.
SAME_ROW = 0.75
#: Levels at which the mean over seeds is smoothed over lr, nats.
LEVELS = (24.9, 25.1, 25.3, 25.6, 26.0)

Rows = npt.NDArray[np.int64]


class World:
    """Curves by learning rate and row; a row is one seed, so neighbouring learning rates share their luck."""

    def __init__(
        self, name: str = BASELINE, *, smooth: bool = True, held_out: bool = False, speed_up: float = 1.0
    ) -> None:
        """`smooth`: the mean over seeds of ln E is smoothed over lr, by stretching the curves; else bumps of a few
        seeds' luck count as truth. `held_out`: of a learning rate with more seeds than the constants of guided tuning
        were chosen on only the others. `speed_up`: every curve is this many times faster."""
        with np.load(DATA / f"{name}.npz", allow_pickle=False) as table:
            losses, x = table["losses"].astype(np.float64), table["x"]
            self.lrs: Array = table["lrs"]
            self.tau = float(table["tau"])
        self.curves = [[curve for row in lr if (curve := self._curve(x, row)).examples.size] for lr in losses]
        self.rows = max(map(len, self.curves))
        if held_out:
            self.curves = [lr[CHOSEN_ON:] or lr for lr in self.curves]
            self.rows -= CHOSEN_ON
        stretch = np.full(self.lrs.size, 1.0 / speed_up)
        if smooth:
            stretch *= np.exp(self._smoothing())
        self.curves = [
            [self._stretched(curve, s) for curve in lr] for lr, s in zip(self.curves, stretch, strict=True)
        ]

    def _curve(self, x: Array, losses: Array) -> Curve:
        seen = np.isfinite(losses)
        n = seen.size - int(seen[::-1].argmax()) if seen.any() else 0
        diverged = n > 0 and x[n - 1] < 0.99 * self.tau and losses[n - 1] > STOPPED_AT
        return Curve(x[:n], losses[:n], bool(diverged))

    def _stretched(self, curve: Curve, factor: float) -> Curve:
        within = curve.examples * factor <= self.tau * (1.0 + 1e-9)
        return Curve(curve.examples[within] * factor, curve.valid_loss[within], curve.diverged)

    def _smoothing(self) -> Array:
        """What to add to each lr's ln E, (24,): its local quadratic over lr (tricube, 3.5 neighbours) less its mean
        over seeds and levels."""
        means = np.array(
            [
                np.mean([np.log(censored(*targets_reached(lr, t), self.tau)).mean() for t in LEVELS])
                for lr in self.curves
            ]
        )
        at = np.arange(self.lrs.size)
        smoothed = []
        for i in at:
            weight = np.clip(1.0 - np.abs((at - i) / 3.5) ** 3, 0.0, None) ** 3
            near = weight > 0.0
            smoothed.append(
                np.polyval(np.polyfit(at[near] - i, means[near], 2, w=np.sqrt(weight[near])), 0.0)
            )
        return np.asarray(np.array(smoothed) - means)

    def train(self, lr: float, row: int, rng: np.random.Generator) -> Curve:
        """A training at `lr` with the luck of a row: the curve of one of the two neighbouring learning rates, the
        nearer the likelier. Learning rates with fewer rows use theirs again."""
        at = float(np.interp(np.log(lr), np.log(self.lrs), np.arange(self.lrs.size)))
        i = min(int(at) + int(rng.random() < at - int(at)), self.lrs.size - 1)
        return self.curves[i][row % len(self.curves[i])]

    def train_all(self, lr: float, rows: Rows, rng: np.random.Generator) -> list[Curve]:
        """One training a row."""
        return [self.train(lr, int(row), rng) for row in rows]

    def draw_rows(self, n: int, rng: np.random.Generator) -> Rows:
        """n seeds, with replacement."""
        return rng.integers(self.rows, size=n)

    def paired_rows(self, rows: Rows, rng: np.random.Generator) -> Rows:
        """Another arm's luck on the same seeds."""
        return np.where(rng.random(rows.size) < SAME_ROW, rows, self.draw_rows(rows.size, rng))

    def examples(self, curves: Sequence[Curve], target: float) -> Array:
        """Examples to target with misses at tau, (n,)."""
        return censored(*targets_reached(curves, target), self.tau)


@cache
def world(name: str, smooth: bool, held_out: bool, speed_up: float) -> World:
    """A world, made once."""
    return World(name, smooth=smooth, held_out=held_out, speed_up=speed_up)
