"""The commands that train: run, search, compare and worker."""

from __future__ import annotations

import os
import secrets
from typing import TYPE_CHECKING, Annotated

import typer

from study.cli.options import (
    DEFAULT_ARTIFACTS,
    DEFAULT_STORAGE,
    REPORTS,
    Artifacts,
    ComparisonOptions,
    DataDir,
    Device,
    DryRun,
    ExperimentOptions,
    Json,
    PlaceOptions,
    Storage,
)
from study.cli.terminal import again, beside, out, plural, print_document, quiet, say
from vae.command import grouped
from vae.errors import UserError

if TYPE_CHECKING:
    from study.analysis.evidence import Evidence
    from study.design.build import Request
    from study.design.experiment import Experiment
    from study.place import Place
    from vae.data.dataset import Dataset


@grouped
def run(
    experiment: ExperimentOptions,
    comparison: ComparisonOptions,
    place: PlaceOptions,
    search_trials: Annotated[
        int | None, typer.Option("--search-trials", help="Total trials of the search; default: 30.")
    ] = None,
    tune_trials: Annotated[
        int | None, typer.Option("--tune-trials", help="K: coarse tuning points per arm; default: 8.")
    ] = None,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Search, compare and report; resumes where it stopped."""
    from study.design.build import RUN_DEFAULTS

    request = experiment.request(
        **comparison.values,
        tune_trials=tune_trials,
        search={"trials": search_trials},
        defaults=RUN_DEFAULTS,
    )
    _execute("run", place, request, dry_run, json)


@grouped
def search(
    experiment: ExperimentOptions,
    place: PlaceOptions,
    search_trials: Annotated[
        int | None, typer.Option("--search-trials", "--trials", help="Total trials; default: 30.")
    ] = None,
    sampler: Annotated[str | None, typer.Option("--sampler", help="tpe, random, qmc or gp.")] = None,
    pruner: Annotated[
        str | None,
        typer.Option("--pruner", help="none, median, percentile, halving, hyperband or patient."),
    ] = None,
    patience: Annotated[
        int | None,
        typer.Option("--patience", help="Grid points without a better loss that end a search trial; 0: off."),
    ] = None,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """The joint search alone: everything is sampled, one Optuna study NAME/search."""
    if search_trials is not None and search_trials < 1:
        raise UserError(f"--search-trials {search_trials}: a search needs at least one trial.")
    request = experiment.request(
        without="arms",
        search={"trials": search_trials, "sampler": sampler, "pruner": pruner, "patience": patience},
        defaults={"search": {"trials": 30}},
    )
    _execute("search", place, request, dry_run, json)


@grouped
def compare(
    experiment: ExperimentOptions,
    comparison: ComparisonOptions,
    place: PlaceOptions,
    tune_trials: Annotated[
        int | None,
        typer.Option("--tune-trials", "--trials", help="K: coarse tuning points per arm; default: 8."),
    ] = None,
    stop_at_target: Annotated[
        bool | None,
        typer.Option(
            "--stop-at-target/--run-to-budget",
            help="End confirmation runs at the target, all but the first five of each arm; default: yes.",
        ),
    ] = None,
    aa: Annotated[
        int | None,
        typer.Option(
            "--aa",
            metavar="N",
            help="Instead of techniques: N comparisons of the baseline with itself, and how often they err.",
        ),
    ] = None,
    null_arms: Annotated[
        int | None,
        typer.Option(
            "--null-arms",
            metavar="M",
            help="With --aa: arms that are the baseline again, in each; default: 1.",
        ),
    ] = None,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """The comparison alone: tune each arm, confirm on fresh seeds, estimate speed-ups."""
    request = experiment.request(
        without="search",
        **comparison.values,
        tune_trials=tune_trials,
        stop_at_target=stop_at_target,
        defaults={"arms": "default"},
    )
    if aa is None:
        if null_arms is not None:
            raise UserError("--null-arms goes with --aa N: a comparison has no null arms of its own.")
        _execute("compare", place, request, dry_run, json)
        return
    if place.log:
        raise UserError("--aa keeps no experiment that could be written to a tracker: leave out --log.")
    if json:
        raise UserError("--json is for one answer, and --aa measures many: leave one out.")
    if place.engine != "local":
        raise UserError("--aa runs in processes of this machine: leave out --engine.")
    if dry_run:
        raise UserError("--aa has no plan to print: leave out --dry-run.")
    unfit = {
        "--arms": comparison.arms is not None,
        "--combine": comparison.combine is True,
        "--run-to-budget": stop_at_target is False,
    }
    for flag in (flag for flag, given in unfit.items() if given):
        raise UserError(f"{flag} doesn't go with --aa, whose arms are the baseline again: leave it out.")
    quiet()
    from study.aa import measure

    null_arms = 1 if null_arms is None else null_arms
    measure(place.place(), request, aa, null_arms, lambda line: out.print(line, soft_wrap=True))


@grouped
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
) -> None:
    """Join an experiment from another process or machine: run its waiting trials until none is left."""
    # Before torch is imported: its thread pools are made once.
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    from study.workers.signals import PARENT_VARIABLE, stop_on_signals

    stop = stop_on_signals()
    import torch

    torch.set_num_threads(threads)
    quiet()
    from study.place import Place
    from study.session import Session
    from study.store.locations import locate

    session = Session.join(Place(storage, locate(artifacts), data_dir, device, 1, threads), name)
    # A launched worker leaves the planning to its launcher and is ended by it; one started by hand plans too,
    # so it carries an experiment to its end alone if it must.
    launched = PARENT_VARIABLE in os.environ
    # Process ids are the same in every container.
    own = secrets.randbelow(1_000_000) if worker_seed is None else worker_seed
    seed = session.experiment.seed * 1_000 + own
    done = session.work(stop, seed, (lambda: False) if launched else session.planner.advance)
    if not launched:
        out.print(f"{done} trials finished.")


def _execute(command: str, options: PlaceOptions, request: Request, dry_run: bool, json: bool) -> None:
    """Run the experiment; with `json` its answer is one document, alone on stdout."""
    if json and dry_run:
        raise UserError("--json is for an answer, which --dry-run doesn't have: leave one out.")
    with beside(json):
        evidence = _carry_out(command, options, request, dry_run)
    if json and evidence is not None:
        from study.analysis.document import of_standing

        print_document(of_standing(evidence))


def _carry_out(command: str, options: PlaceOptions, request: Request, dry_run: bool) -> Evidence | None:
    """Plan, run, time, report: the common course of run, search and compare; None for a plan alone."""
    quiet()
    from study.analysis.evidence import read
    from study.analysis.export import keep_models
    from study.cli.progress import Progress
    from study.cli.tables import print_comparison, print_search
    from study.dashboard.publisher import Publisher
    from study.place import cores, require_writable
    from study.report.page import write_report
    from study.session import Session, check
    from study.tracking.follow import Followers, require_kinds
    from study.workers.launch import Ended

    trackers = require_kinds(options.log or [], "--log")
    require_writable(REPORTS, "The folder of the report")
    cluster = options.cluster()
    place = options.place(cluster)
    if not place.is_cluster and place.workers * place.threads > cores():
        say(
            f"Warning: {plural(place.workers, 'worker')} x {plural(place.threads, 'thread')} share "
            f"{plural(cores(), 'core')}: trainings wait for "
            f"each other, and their seconds mean little. --workers {place.at_once} is as many as "
            "run at once."
        )
    if dry_run:
        experiment, dataset = check(place, request)
        _print_plan(experiment, dataset, place)
        return None
    session = Session.prepare(place, request)
    experiment = session.experiment
    _print_plan(experiment, session.data, place)
    # Leaving the publisher's block publishes the final state, timings included.
    with Publisher(session.store, experiment.name, place.artifacts, place.data_dir, say) as publisher:
        with (
            Followers(session.store, experiment.name, trackers, say) as followers,
            Progress(out, session.store, experiment) as progress,
        ):

            def on_progress() -> None:
                progress.update()
                publisher.maybe_publish()
                followers.look()

            ended = session.launch(on_progress, cluster)
        if ended is not Ended.DONE:
            say(f"{ended.sentence} To go on:\n  {again(command)}")
            raise SystemExit(130)
        publisher.wait()
        if experiment.arms:
            session.time_arms(lambda line: out.print(line, style="dim", markup=False, soft_wrap=True))
        evidence = read(session.store, experiment.name)
        kept = keep_models(evidence, session.artifacts, say)
    print_comparison(out, evidence)
    print_search(out, evidence)
    for use, path in kept.items():
        out.print(f"{use.capitalize()} model: {path}", soft_wrap=True)
    page = REPORTS / f"{experiment.name}.html"
    written = write_report(evidence, page, place.artifacts, place.data_dir)
    out.print(f"Report: {written}", soft_wrap=True)
    return evidence


def _print_plan(experiment: Experiment, data: Dataset, place: Place) -> None:
    from study.cli.tables import print_plan
    from study.session import calibrated_spread, finished_trials
    from study.workers.throughput import estimated_minutes
    from vae.devices import pick_device

    device = pick_device(place.device)
    minutes = estimated_minutes(experiment, data, device, at_once=place.at_once, threads=place.threads)
    finished, spread = finished_trials(place, experiment.name), calibrated_spread(place, experiment.name)
    print_plan(out, experiment, data, place, minutes, finished, spread)
