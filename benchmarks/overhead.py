"""What the harness adds to a trial: Optuna, claims, reports, curve rows and pruning, as a share of the trial.

Each trial is run by the harness (one worker, in this process) and, with the same recipe and to the same number
of examples, by the bare loop `for evaluation in train(...)`: A B B A, so that drift is common to both and neither
gains by its place. A difference of one percent is below what a noisy machine shows that way; so the seconds that
the harness's trial spends outside of the training itself are counted apart, within the same trial.
"""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import optuna
import torch
import typer

from study.design.build import Request
from study.place import Place
from study.session import Session
from study.store import records
from study.store.claims import Claim
from study.store.locations import Local
from study.store.owner import new_owner
from study.workers.splits import Splits
from study.workers.trial import Objective, Trainer
from study.workers.worker import work
from vae.evaluation import Evaluation
from vae.recipe import Recipe
from vae.training import Training, train


def main(
    data: Annotated[str, typer.Option(help="Data set.")] = "digits",
    budget: Annotated[float, typer.Option(help="Epochs a trial lasts.")] = 40.0,
    trials: Annotated[
        int, typer.Option(min=2, help="Trials of each kind; the first, which warms up, isn't counted.")
    ] = 20,
    storage: Annotated[
        str | None, typer.Option(help="Database URL; default: a SQLite file of its own.")
    ] = None,
) -> None:
    """Seconds a trial under the harness and in the bare loop, and the share that the harness adds."""
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        place = Place(storage or f"sqlite:///{folder}/optuna.db", Local(Path(folder)), None, "cpu", 1)
        for pruner in ("none", "median"):
            values = {"data": data, "name": f"overhead-{pruner}-{os.getpid()}", "budget": budget}
            values["search"] = {"trials": trials, "pruner": pruner}
            # One size of trial: the sampler still proposes everything else.
            session = Session.prepare(
                place, Request(values, {"optimizer": "adam", "batch_size": 64}, source="benchmark")
            )
            session.planner.advance()
            harness, bare, outside = _measure(session)
            added = harness / bare - 1
            typer.echo(
                f"{data}, {budget:g} epochs, pruner {pruner}: {len(bare)} trials, harness {harness.mean():.3f} s, "
                f"bare loop {bare.mean():.3f} s a trial; the harness adds {harness.sum() / bare.sum() - 1:.1%} "
                f"(trials: median {np.median(added):.1%}, {added.min():.1%} to {added.max():.1%}); outside of the "
                f"training itself {outside.mean():.3f} s a trial, {outside.sum() / harness.sum():.2%}"
            )


class _Measured(NamedTuple):
    """Seconds of each trial, (n_trials,)."""

    harness: np.ndarray  # with all that the harness does for it
    bare: np.ndarray  # of its bare loop
    outside: np.ndarray  # of the first, what was spent outside of the training


class _Timed:
    """A training that adds the seconds it takes to `spent`."""

    def __init__(self, training: Training, spent: list[float]) -> None:
        self._training, self._spent = training, spent

    def __getattr__(self, name: str) -> Any:
        return getattr(self._training, name)

    def __iter__(self) -> Iterator[Evaluation]:
        evaluations = iter(self._training)
        while True:
            began = time.perf_counter()
            evaluation = next(evaluations, None)
            self._spent.append(time.perf_counter() - began)
            if evaluation is None:
                return
            yield evaluation


def _measure(session: Session) -> _Measured:
    seconds: list[tuple[float, float, float]] = []
    inside: list[float] = []
    bare: list[tuple[int, float]] = []
    mark = time.perf_counter()

    def run_bare(recipe: Recipe) -> None:
        """The same training by itself; it takes nothing of the harness's time."""
        nonlocal mark
        began = time.perf_counter()
        bare.clear()
        bare.extend(
            (evaluation.examples, time.perf_counter() - began)
            for evaluation in train(recipe, session.data, session.workload.tau)
        )
        mark += time.perf_counter() - began

    def make(recipe: Recipe, *arguments: Any) -> Any:
        if len(seconds) % 2:
            run_bare(recipe)
        began = time.perf_counter()
        training = train(recipe, *arguments)
        inside.append(time.perf_counter() - began)
        return _Timed(training, inside)

    runner = Objective(
        session.store,
        session.experiment,
        Splits(session.experiment, session.data, None),
        torch.device("cpu"),
        session.artifacts,
        Trainer(train=make),
    )

    def run_trial(claim: Claim, stop_requested: Callable[[], bool]) -> None:
        nonlocal mark
        inside.clear()
        runner.run(claim, stop_requested)
        taken = time.perf_counter() - mark
        table = records.trials(session.store, session.experiment.name).set_index("trial_id")
        row = table.loc[claim.trial_id]
        if len(seconds) % 2 == 0:
            run_bare(Recipe.from_json(str(row["recipe"])))
        # The harness may have pruned: only as much of the bare loop counts.
        alone = next(at for examples, at in bare if examples >= row["examples"])
        seconds.append((taken, alone, taken - sum(inside)))
        mark = time.perf_counter()

    work(
        session.store,
        session.experiment.name,
        run_trial,
        owner=new_owner(),
        make_study=lambda name: runner.make_study(name, 0),
        stop=threading.Event(),
    )
    # The first trial pays for imports and warm-up.
    return _Measured(*np.array(seconds[1:]).T)
