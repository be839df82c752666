"""A 30-trial search and a 10-arm comparison: the harness against plain Optuna round a plain PyTorch loop.

The harness runs first, from an empty database, as `python -m study search` and `compare`; then the plain loop
(`benchmarks.plain`) trains every recipe that the harness trained for as many examples. Wall time counts from
the start of the process to the end of its last trial, imports and planning included; the harness's timing of
arms and its report, for which the plain loop has nothing, come after that.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import typer

from study.store import records
from study.store.store import Store
from vae.errors import FailureError

#: What is run: name -> arguments of `python -m study`.
WORK = {"search of 30 trials": ["search", "--trials", "30"], "comparison of 10 arms": ["compare"]}


def main(
    data: Annotated[str, typer.Option(help="Data set.")] = "digits",
    budget: Annotated[float, typer.Option(help="Epochs a training may last.")] = 40.0,
    workers: Annotated[int, typer.Option(min=1, help="Workers, beside one.")] = os.cpu_count() or 1,
    rounds: Annotated[int, typer.Option(min=1, help="Interleaved rounds.")] = 3,
) -> None:
    """Wall seconds and trials an hour of the same trials, and the ratios of each round."""
    typer.echo(
        f"{data}, {budget:g} epochs, {rounds} rounds; one thread a process; plain: Optuna + PyTorch, one process"
    )
    for what, arguments in WORK.items():
        walls: dict[str, list[float]] = {}
        best: dict[str, list[float]] = {}
        n_trials = 0
        for _ in range(rounds):
            for n_workers in sorted({1, workers}):
                with tempfile.TemporaryDirectory() as folder:
                    seconds, trials = run_harness(Path(folder), data, budget, n_workers, arguments)
                    kind = f"harness, {n_workers} worker{'' if n_workers == 1 else 's'}"
                    walls.setdefault(kind, []).append(seconds)
                    best.setdefault(kind, []).append(float(trials["best_valid_loss"].median()))
            with tempfile.TemporaryDirectory() as folder:
                seconds, losses = run_plain(Path(folder), data, budget, trials)
            walls.setdefault("plain", []).append(seconds)
            best.setdefault("plain", []).append(float(np.nanmedian(losses)))
            n_trials = len(trials)
        typer.echo(f"{what}: {n_trials} trials")
        for kind, seconds_of in walls.items():
            ratios = np.array(walls["plain"]) / np.array(seconds_of)
            typer.echo(
                f"  {kind:20s} {np.median(seconds_of):7.1f} s [{min(seconds_of):.1f}, {max(seconds_of):.1f}], "
                f"{3600 * n_trials / np.median(seconds_of):7,.0f} trials an hour, "
                f"{np.median(ratios):.2f}x plain [{ratios.min():.2f}, {ratios.max():.2f}], "
                f"median best validation loss {np.median(best[kind]):.2f} nats"
            )


def run_harness(
    folder: Path, data: str, budget: float, workers: int, arguments: list[str]
) -> tuple[float, pd.DataFrame]:
    """Seconds from the start of the command to the end of its last trial, and its trials."""
    storage = f"sqlite:///{folder}/optuna.db"
    began = time.time()
    command = [sys.executable, "-m", "study", *arguments, "--data", data, "--budget", str(budget)]
    _run([*command, "--workers", str(workers), "--storage", storage, "--artifacts", str(folder)], folder)
    with Store.open(storage, read_only=True) as store:
        trials = records.trials(store, data)
    trials = trials[trials["examples"].notna()]
    return float(trials["finished"].max()) - began, trials


def run_plain(folder: Path, data: str, budget: float, trials: pd.DataFrame) -> tuple[float, list[float]]:
    """Seconds of the plain loop over the same trainings, its imports included, and its losses."""
    parameters = [str(column) for column in trials if str(column).startswith("params_")]
    choices = {
        column.removeprefix("params_"): sorted(set(trials[column].dropna()))
        for column in parameters
        if trials[column].dropna().map(lambda value: isinstance(value, str)).any()
    }
    planned = [
        {
            "study": row["study_name"],
            "params": {c.removeprefix("params_"): row[c] for c in parameters if not pd.isna(row[c])},
            "recipe": row["recipe"],
            "examples": int(row["examples"]),
        }
        for row in trials.to_dict("records")
    ]
    plan = {"data": data, "budget": budget, "threads": 1, "storage": f"sqlite:///{folder}/plain.db"}
    plan["choices"] = choices
    path = folder / "plan.json"
    path.write_text(json.dumps(plan | {"trials": planned}), encoding="utf-8")
    began = time.time()
    told = json.loads(_run([sys.executable, "-m", "benchmarks.plain", str(path)], Path.cwd()))
    return time.time() - began, told["losses"]


def _run(command: list[str], folder: Path) -> str:
    done = subprocess.run(
        command,
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise FailureError(f"{' '.join(command[1:4])} ended with {done.returncode}: {done.stderr[-500:]}")
    return done.stdout
