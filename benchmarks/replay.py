"""How long `python -m study replay` plays recorded curves again: made curves, nothing is trained.

The curves fall as powers of the examples to plateaus of their own, with noise, and cross each other, so that a rule
which looks early is wrong now and then. What is timed is all that the command does after reading them.
"""

from __future__ import annotations

import time
from typing import Annotated

import numpy as np
import typer

from study.analysis.replayed import Settings, from_curves, replay
from study.curves.recorded import Curves, Recorded
from study.place import cores


def main(
    runs: Annotated[int, typer.Option(min=2)] = 100,
    points: Annotated[int, typer.Option(min=3, help="Evaluations of a run.")] = 30,
    orders: Annotated[int, typer.Option(min=1, help="Random orders of arrival.")] = 200,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; default: one a core.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Draws the curves.")] = 0,
) -> None:
    """Seconds to play every rule over so many orders, with one and with four simulated workers."""
    recording = from_curves("made", made_curves(runs, points, seed), every=1)
    began = time.perf_counter()
    found = replay(recording, Settings(orders=orders), workers or cores())
    seconds = time.perf_counter() - began
    n_rules = len({score.policy.name for score in found.scores})
    typer.echo(
        f"{orders} orders x {n_rules} rules x {len(found.settings.workers)} numbers of simulated workers over {runs} "
        f"curves of {points} points, {workers or cores()} processes: {seconds:.1f} s"
    )


def made_curves(runs: int, points: int, seed: int) -> Curves:
    """So many runs (drawn by `seed`) on one clock of epochs."""
    rng = np.random.default_rng(seed)
    epochs = np.arange(1.0, points + 1.0)
    made = []
    for i in range(runs):
        plateau, fall, power = rng.normal(25.0, 1.0), rng.uniform(10.0, 60.0), rng.uniform(0.3, 1.2)
        value = plateau + fall * epochs**-power + rng.normal(0.0, 0.2, points)
        made.append(Recorded("search", str(i), epochs, value, epochs * rng.uniform(0.5, 2.0)))
    return Curves(made, clock="epochs", value="loss")
