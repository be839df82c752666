"""What one database bears: short trials by many workers, the answer at a large size, and queries a worker.

The trials only wait, so what is measured is the coordination: claims, curve rows, reports, leases. Lock errors and
failed trials are counted, and must be none. Times are of the machine as it is: run it on an idle one.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import optuna
import typer
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState, create_trial
from sqlalchemy import event

from study.design.build import Request
from study.place import Place
from study.protocol.assignment import Assignment
from study.session import Session
from study.store import records
from study.store.claims import Claim
from study.store.database import WORKER_CONNECTIONS
from study.store.locations import Local
from study.store.owner import new_owner
from study.store.schema import curve, trial_run
from study.store.store import Store
from study.terms import SEARCH, STORAGE_VARIABLE, Phase
from study.workers.processes import this_program
from study.workers.worker import work
from vae.recipe import Recipe

_NAME = "load"
#: Rows of a trial's curve, and how many are written at a time.
ROWS, AT_ONCE = 180, 20
#: Workers whose demand is worked out.
_SIMULATED = (10, 100, 1_000)


class Pass(NamedTuple):
    """What some workers did with short trials."""

    workers: int
    trials: int
    seconds: float
    errors: int
    """Trials that failed, and workers that ended by an error."""
    growth: float
    """MiB that the worker that grew most did from its tenth trial to its last."""
    statements: float
    """SQL statements a trial."""

    @property
    def an_hour(self) -> float:
        """Trials an hour."""
        return 3600 * self.trials / self.seconds


def main(
    storage: Annotated[
        str | None, typer.Option(help="URL of an empty database; default: a SQLite file of its own.")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Most workers.")] = 8,
    trials: Annotated[int, typer.Option(min=1, help="Short trials a worker in each pass.")] = 40,
    wait: Annotated[
        float, typer.Option(min=0.001, help="Seconds that a trial waits in place of training.")
    ] = 0.5,
    minutes: Annotated[
        float, typer.Option(min=0, help="How long the most workers go on in a last pass; 0: none.")
    ] = 5,
    large: Annotated[int, typer.Option(min=1, help="Trials of the large experiment.")] = 2_000,
) -> None:
    """Trials an hour from 1 to 8 workers, errors, memory; a large experiment's times; queries of many workers."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        url = storage or f"sqlite:///{folder}/optuna.db"
        with Store.open(url, create=True) as store:
            kind = store.engine.dialect.name
        _large(url, Path(folder), large)  # first: a SQLite file is then as large as this experiment
        typer.echo(f"\n{kind}; trials of {ROWS} rows that wait {wait:g} s; {trials} a worker")
        typer.echo("workers  seconds  trials/hour  of ideal  errors  growth, MiB  statements/trial")
        counts = [n for n in (1, 2, 4, 8, 16, 32) if n < workers] + [workers]
        passes = [_told(run(url, n, n * trials, wait), wait) for n in counts]
        if minutes:
            _told(run(url, workers, max(1, round(passes[-1].an_hour * minutes / 60)), wait), wait)
        flat_out = run(url, workers, workers * trials, 0.0)
        _simulate(passes[0].statements, flat_out)


def _told(done: Pass, wait: float) -> Pass:
    """The pass, once its line of the table is printed."""
    ideal = done.workers * 3600 / wait
    typer.echo(
        f"{done.workers:7d}  {done.seconds:7.0f}  {done.an_hour:11,.0f}  {done.an_hour / ideal:8.0%}  "
        f"{done.errors:6d}  {done.growth:11.1f}  {done.statements:16.0f}"
    )
    return done


def run(url: str, workers: int, trials: int, wait: float) -> Pass:
    """So many workers, each in a process, on so many waiting trials."""
    name = f"{_NAME}-{uuid.uuid4().hex}"
    with Store.open(url) as store:
        study = optuna.create_study(study_name=f"{name}/search", storage=store.optuna)
        for i in range(trials):
            study.enqueue_trial({"x": i / trials})
        context = multiprocessing.get_context("spawn")
        results: Any = context.Queue()
        ready = context.Barrier(workers + 1)
        processes = [
            context.Process(target=_worker, args=(url, name, wait, results, ready)) for _ in range(workers)
        ]
        for process in processes:
            process.start()
        ready.wait()
        began = time.perf_counter()
        told = [results.get() for _ in processes]
        seconds = time.perf_counter() - began
        for process in processes:
            process.join()
        ended = records.trials(store, name)["outcome"]
    errors = int((ended != "completed").sum()) + sum(process.exitcode != 0 for process in processes)
    statements = sum(n for n, _ in told) / trials
    return Pass(workers, trials, seconds, errors, max(growth for _, growth in told), statements)


def _worker(url: str, name: str, wait: float, results: Any, ready: Any) -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    memory: list[float] = []
    with Store.open(url, connections=WORKER_CONNECTIONS) as store, counted(store) as statements:

        def train(claim: Claim, stop_requested: object) -> None:  # noqa: ARG001
            claim.describe(phase="search", seed=claim.number, recipe="{}")
            claim.trial.suggest_float("x", 0, 1)
            for first in range(0, ROWS, AT_ONCE):
                time.sleep(wait * AT_ONCE / ROWS)
                claim.record(_row(number) for number in range(first, first + AT_ONCE))
            claim.finish(state=TrialState.COMPLETE, value=1.0, outcome="completed", examples=100 * ROWS)
            memory.append(_megabytes())

        ready.wait()
        try:
            work(
                store,
                name,
                train,
                owner=new_owner(),
                make_study=lambda study: optuna.load_study(study_name=study, storage=store.optuna),
                stop=threading.Event(),
            )
        finally:  # of an error too: the process that started this one waits for every worker's line
            settled = memory[min(9, len(memory) - 1)] if memory else 0.0
            results.put((statements[0], memory[-1] - settled if memory else 0.0))


def _row(number: int) -> dict[str, Any]:
    loss = 100.0 * float(np.exp(-number / 60))
    values = {
        "train_loss": loss,
        "valid_loss": loss,
        "rate": 1.0,
        "distortion": loss - 1,
        "lr": 1e-3,
        "beta": 1.0,
    }
    return values | {
        "number": number,
        "examples": 100 * (number + 1),
        "steps": number + 1,
        "train_seconds": 0.01,
    }


def _megabytes() -> float:
    """The memory of this process: now on Linux, the most it has had on macOS."""
    if sys.platform == "linux":  # where the most starts at that of the process that started this one
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * resource.getpagesize() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


@contextmanager
def counted(store: Store) -> Iterator[list[int]]:
    """In this block the list's one number counts the statements that go to the database."""
    count = [0]

    def add(*_: Any) -> None:
        count[0] += 1

    event.listen(store.engine, "before_cursor_execute", add)
    try:
        yield count
    finally:
        event.remove(store.engine, "before_cursor_execute", add)


def _simulate(alone: float, flat_out: Pass) -> None:
    """What the database must serve, from one worker times the count, and what it serves where nobody waits."""
    served = flat_out.statements * flat_out.trials / flat_out.seconds
    typer.echo(f"\n{flat_out.workers} workers without a wait: {served:,.0f} statements a second")
    typer.echo("needed by so many workers, and how many need all there is:")
    typer.echo("trial lasts  " + "  ".join(f"{n:>9,d}" for n in _SIMULATED) + "  ends at")
    for seconds in (10.0, 60.0, 600.0):
        # As many statements a trial however long it is, its curve having as many rows; and a renewed lease, of three
        # statements with its transaction, every ten seconds.
        a_second = alone / seconds + 0.3
        needed = "  ".join(f"{n * a_second:9,.0f}" for n in _SIMULATED)
        typer.echo(f"{seconds:9,.0f} s  {needed}  {served / a_second:,.0f} workers")


def _large(url: str, folder: Path, trials: int) -> None:
    """A finished search of so many trials, made up: what the commands that read it take, and how large it is."""
    place = Place(url, Local(folder / "artifacts"), None, "cpu", 1)
    values = {"data": "digits", "name": "large", "search": {"trials": trials}}
    with Session.prepare(place, Request(values, source="benchmark")).store as store:
        study = optuna.create_study(study_name="large/search", storage=store.optuna, load_if_exists=True)
        lr = FloatDistribution(1e-4, 1e-1, log=True)
        study.add_trials(
            create_trial(
                params={"lr": 1e-3 * (1 + i / trials)},
                distributions={"lr": lr},
                value=_row(ROWS - 1)["valid_loss"],
                user_attrs=Assignment(SEARCH, Phase.SEARCH, 1, i).to_attrs({}),
            )
            for i in range(trials)
        )
        _fill(store, study)
        size = (
            f"{store.database.path.stat().st_size / 2**20:,.0f} MiB" if store.database.path else "a server's"
        )
    typer.echo(f"{trials:,} trials of {ROWS} rows, {size}. Seconds, of the processor and by the clock:")
    for command in ("show", "report", "export"):
        used, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        line = this_program(command, "--name", "large")
        environment = os.environ | {STORAGE_VARIABLE: url}
        subprocess.run(line, cwd=folder, env=environment, capture_output=True, check=True)
        seconds, now = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
        spent = now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime
        typer.echo(f"  {command:8s} {spent:6.1f} {seconds:6.1f}")
    page = folder / "reports" / "large.html"
    typer.echo(
        f"  the page: {page.stat().st_size / 2**20:.1f} MiB" if page.exists() else "  no page was written"
    )


def _fill(store: Store, study: optuna.Study) -> None:
    """Our rows of every trial of a study."""
    rows = [_row(number) for number in range(ROWS)]
    last = rows[-1]
    trials = study.get_trials(deepcopy=False)  # before: SQLite has one writer, and Optuna asks as one
    with store.write() as connection:
        for trial in trials:
            told = {
                "trial_id": trial._trial_id,
                "experiment": "large",
                "arm": SEARCH,
                "block": 1,
                "phase": "search",
            }
            told |= {"number": trial.number, "attempt": 1, "died": 0, "furthest": ROWS - 1, "started": 0.0}
            told |= {
                "finished": 1.0,
                "outcome": "completed",
                "state": "COMPLETE",
                "value": last["valid_loss"],
            }
            told |= {
                "recipe": Recipe(lr=trial.params["lr"], seed=trial.number).to_json(),
                "seed": trial.number,
            }
            told |= {key: last[key] for key in ("valid_loss", "examples", "steps", "train_seconds")}
            connection.execute(trial_run.insert().values(told | {"best_valid_loss": last["valid_loss"]}))
            connection.execute(curve.insert(), [row | {"trial_id": trial._trial_id} for row in rows])
