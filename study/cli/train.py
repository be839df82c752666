"""The commands that train: run, search, compare and worker."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from study.cli.options import (
    DEFAULT_ARTIFACTS,
    DEFAULT_STORAGE,
    Arms,
    Artifacts,
    Blocks,
    Budget,
    Combine,
    Data,
    DataDir,
    Debug,
    Device,
    DryRun,
    File,
    Margin,
    Name,
    Patience,
    Pruner,
    Sampler,
    SearchTrials,
    Seed,
    Seeds,
    Set,
    StopAtTarget,
    Storage,
    Target,
    TuneSeeds,
    TuneTrials,
    Workers,
    again,
    fixed_fields,
    given,
    place_of,
    quiet,
    values_of,
)
from study.cli.terminal import err, out
from vae.errors import UserError

if TYPE_CHECKING:
    from study.place import Place


def run_command(
    data: Data = None,
    name: Name = None,
    file: File = None,
    search_trials: SearchTrials = None,
    tune_trials: TuneTrials = None,
    tune_seeds: TuneSeeds = None,
    arms: Arms = None,
    seeds: Seeds = None,
    blocks: Blocks = None,
    combine: Combine = None,
    budget: Budget = None,
    target: Target = None,
    margin: Margin = None,
    seed: Seed = None,
    fix: Set = None,
    storage: Storage = DEFAULT_STORAGE,
    artifacts: Artifacts = DEFAULT_ARTIFACTS,
    data_dir: DataDir = None,
    workers: Workers = None,
    device: Device = "auto",
    dry_run: DryRun = False,
    debug: Debug = False,
) -> None:
    """Search, compare and report; resumes where it stopped."""
    values = values_of(file, data=data, name=name, seeds=seeds, blocks=blocks, combine=combine, budget=budget)
    values |= given(tune_trials=tune_trials, tune_seeds=tune_seeds, arms=arms, target=target, margin=margin)
    values |= given(seed=seed)
    values["search"] = values.get("search", {}) | given(trials=search_trials)
    values["fallback"] = {"arms": "default", "search_trials": 30}
    place = place_of(storage, artifacts, data_dir, device, workers)
    _execute("run", place, values, fixed_fields(fix), file, dry_run)


def search(
    data: Data = None,
    name: Name = None,
    file: File = None,
    trials: Annotated[int | None, typer.Option("--trials", help="Total trials; default: 30.")] = None,
    sampler: Sampler = None,
    pruner: Pruner = None,
    patience: Patience = None,
    budget: Budget = None,
    seed: Seed = None,
    fix: Set = None,
    storage: Storage = DEFAULT_STORAGE,
    artifacts: Artifacts = DEFAULT_ARTIFACTS,
    data_dir: DataDir = None,
    workers: Workers = None,
    device: Device = "auto",
    dry_run: DryRun = False,
    debug: Debug = False,
) -> None:
    """The joint search alone: everything is sampled, one Optuna study NAME/search."""
    values = values_of(file, data=data, name=name, budget=budget, seed=seed)
    values.pop("arms", None)
    if trials is not None and trials < 1:
        raise UserError(f"--trials {trials}: a search needs at least one trial.")
    plan = given(trials=trials, sampler=sampler, pruner=pruner, patience=patience)
    values["search"] = values.get("search", {}) | plan
    values["fallback"] = {"search_trials": 30}
    place = place_of(storage, artifacts, data_dir, device, workers)
    _execute("search", place, values, fixed_fields(fix), file, dry_run)


def compare(
    data: Data = None,
    name: Name = None,
    file: File = None,
    arms: Arms = None,
    trials: Annotated[int | None, typer.Option("--trials", help="K: tuning points per arm.")] = None,
    tune_seeds: TuneSeeds = None,
    seeds: Seeds = None,
    blocks: Blocks = None,
    combine: Combine = None,
    budget: Budget = None,
    target: Target = None,
    margin: Margin = None,
    stop_at_target: StopAtTarget = None,
    aa: Annotated[
        int | None,
        typer.Option(
            "--aa", metavar="N", help="Instead: N A/A comparisons, and how often they err, for R = 1 and 5."
        ),
    ] = None,
    seed: Seed = None,
    fix: Set = None,
    storage: Storage = DEFAULT_STORAGE,
    artifacts: Artifacts = DEFAULT_ARTIFACTS,
    data_dir: DataDir = None,
    workers: Workers = None,
    device: Device = "auto",
    dry_run: DryRun = False,
    debug: Debug = False,
) -> None:
    """The comparison alone: tune each arm, confirm on fresh seeds, estimate speed-ups."""
    values = values_of(file, data=data, name=name, seeds=seeds, blocks=blocks, combine=combine, budget=budget)
    values |= given(tune_trials=trials, tune_seeds=tune_seeds, arms=arms, target=target, margin=margin)
    values |= given(seed=seed, stop_at_target=stop_at_target)
    values.pop("search", None)
    place = place_of(storage, artifacts, data_dir, device, workers)
    if aa is not None:
        if dry_run:
            raise UserError("--aa has no plan to print: leave out --dry-run.")
        quiet()
        from study.aa import measure

        counts = (blocks,) if blocks else (1, 5)
        measure(place, values, fixed_fields(fix), aa, counts, lambda line: out.print(line, soft_wrap=True))
        return
    values["fallback"] = {"arms": "default"}
    _execute("compare", place, values, fixed_fields(fix), file, dry_run)


def worker(
    name: Annotated[str, typer.Option("--name", help="Name of the experiment to work on.")],
    storage: Storage = DEFAULT_STORAGE,
    artifacts: Artifacts = DEFAULT_ARTIFACTS,
    data_dir: DataDir = None,
    device: Device = "auto",
    threads: Annotated[int, typer.Option("--threads", min=1, help="Threads of this worker.")] = 1,
    worker_seed: Annotated[
        int | None, typer.Option("--worker-seed", help="Sampler seed of this worker.")
    ] = None,
    debug: Debug = False,
) -> None:
    """Join an experiment from another process or machine: run its waiting trials until none is left."""
    # Before torch is imported: its thread pools are made once.
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    from study.workers.worker import PARENT_VARIABLE, stop_on_signals

    stop = stop_on_signals()
    import torch

    torch.set_num_threads(threads)
    quiet()
    from study.session import Session

    session = Session.join(place_of(storage, artifacts, data_dir, device, 1), name)
    # A launched worker leaves the planning to its launcher and is ended by it; one started by hand plans too,
    # so it carries an experiment to its end alone if it must.
    launched = PARENT_VARIABLE in os.environ
    seed = session.experiment.seed * 1_000 + (os.getpid() if worker_seed is None else worker_seed)
    done = session.work(stop, seed, (lambda: False) if launched else session.planner.advance)
    if not launched:
        out.print(f"{done} trials finished.")


def _execute(
    command: str,
    place: Place,
    values: dict[str, Any],
    fixed: dict[str, Any],
    file: Path | None,
    dry_run: bool,
) -> None:
    """Plan, run, time, report: the common course of run, search and compare."""
    quiet()
    from study.cli.progress import Progress, estimated_minutes
    from study.cli.tables import print_comparison, print_plan, print_search
    from study.dashboard.publisher import Publisher
    from study.report.page import write_report
    from study.session import Session, check

    source = str(file) if file else "command line"
    if dry_run:
        experiment, dataset = check(place, values, fixed, source)
        print_plan(out, experiment, dataset, place, estimated_minutes(experiment, dataset, place))
        return
    session = Session.prepare(place, values, fixed, source)
    experiment = session.experiment
    print_plan(out, experiment, session.data, place, estimated_minutes(experiment, session.data, place))

    def say(line: str) -> None:
        err.print(line, soft_wrap=True, markup=False)

    # Leaving the publisher's block publishes the final state, timings included.
    with Publisher(session.store, experiment.name, place.artifacts, place.data_dir, say) as publisher:
        with Progress(out, session.store, experiment) as progress:

            def on_progress() -> None:
                progress.update()
                publisher.maybe_publish()

            complete = session.launch(on_progress)
        if not complete:
            say(f"Stopped. Finished trials are kept, running ones were saved. To go on:\n  {again(command)}")
            raise SystemExit(130)
        publisher.wait()
        if experiment.arms:
            session.time_arms(lambda arm: out.print(f"timing {arm} against the baseline", style="dim"))
        kept = session.keep_best_model()
    print_search(out, session.store, experiment.name)
    print_comparison(out, session.store, experiment.name)
    if kept is not None:
        out.print(f"Best model: {kept}", soft_wrap=True)
    path = Path("reports") / f"{experiment.name}.html"
    written = write_report(session.store, experiment.name, path, place.artifacts, place.data_dir)
    out.print(f"Report: {written}", soft_wrap=True)
