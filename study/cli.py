"""The command line: the only place that parses, prints and chooses exit codes."""

from __future__ import annotations

import os
import sys
import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.console import Console

if TYPE_CHECKING:
    from study.session import Place, Session

app = typer.Typer(
    name="vae-study",
    help="Which training techniques make a VAE train faster, by how much, and how sure is that?",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
out = Console(highlight=False)
err = Console(stderr=True, highlight=False)

Data = Annotated[
    str | None,
    typer.Option(
        "--data", metavar="NAME|PATH", help="digits, mnist, fashion-mnist, kmnist, or a .npy or .npz file."
    ),
]
Name = Annotated[str | None, typer.Option("--name", help="Name of the experiment; default: the data's name.")]
File = Annotated[Path | None, typer.Option("--file", metavar="TOML", help="Experiment file.")]
Storage = Annotated[
    str,
    typer.Option(
        "--storage",
        metavar="URL",
        envvar="VAE_STUDY_STORAGE",
        help="sqlite:/// or postgresql+psycopg:// URL.",
    ),
]
Artifacts = Annotated[Path, typer.Option("--artifacts", help="Folder for models, states and images.")]
DataDir = Annotated[Path | None, typer.Option("--data-dir", help="Folder that is searched for data first.")]
Workers = Annotated[
    int | None, typer.Option("--workers", min=1, help="Worker processes; default: one per core.")
]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:N or mps.")]
Seed = Annotated[
    int | None, typer.Option("--seed", help="Seeds the split, the tuning points and every training.")
]
Budget = Annotated[float | None, typer.Option("--budget", help="tau: epochs a training may last.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="FIELD=VALUE", help="Fix a recipe field; may be repeated."),
]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Check everything, print the plan and stop.")]
Arms = Annotated[
    str | None,
    typer.Option("--arms", help="Comma-separated techniques; 'default' and 'all' are sets of them."),
]
Seeds = Annotated[int | None, typer.Option("--seeds", min=1, help="S: confirmation seeds per arm.")]
Blocks = Annotated[int | None, typer.Option("--blocks", min=1, help="R: times that tuning is repeated.")]
Target = Annotated[
    float | None, typer.Option("--target", help="Validation loss to reach; default: calibrated.")
]
Margin = Annotated[
    float | None, typer.Option("--margin", help="Speed-ups within this margin of 1 are no verdict.")
]
StopAtTarget = Annotated[
    bool | None,
    typer.Option("--stop-at-target/--run-to-budget", help="End confirmation runs at the target."),
]
Combine = Annotated[bool | None, typer.Option("--combine/--no-combine", help="Also test the combined arm.")]
Sampler = Annotated[str | None, typer.Option("--sampler", help="tpe, random, qmc or gp.")]
Pruner = Annotated[
    str | None, typer.Option("--pruner", help="none, median, percentile, halving, hyperband or patient.")
]
Patience = Annotated[
    int | None,
    typer.Option("--patience", help="Grid points without a better loss that end a search trial; 0: off."),
]

DEFAULT_STORAGE = "sqlite:///optuna.db"
DEFAULT_ARTIFACTS = Path("artifacts")


@app.command("run")
def run_command(
    data: Data = None,
    name: Name = None,
    file: File = None,
    search_trials: Annotated[
        int | None, typer.Option("--search-trials", min=0, help="Trials of the search.")
    ] = None,
    tune_trials: Annotated[
        int | None, typer.Option("--tune-trials", min=1, help="K: tuning points per arm.")
    ] = None,
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
    values = _values(file, data=data, name=name, seeds=seeds, blocks=blocks, combine=combine, budget=budget)
    values |= _given(tune_trials=tune_trials, arms=arms, target=target, margin=margin, seed=seed)
    values["search"] = values.get("search", {}) | _given(trials=search_trials)
    values["fallback"] = {"arms": "default", "search_trials": 30}
    place = _place(storage, artifacts, data_dir, device, workers)
    _execute("run", place, values, _fixed(fix), file, dry_run)


@app.command()
def search(
    data: Data = None,
    name: Name = None,
    file: File = None,
    trials: Annotated[int | None, typer.Option("--trials", min=1, help="Total trials.")] = None,
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
    values = _values(file, data=data, name=name, budget=budget, seed=seed)
    values.pop("arms", None)
    given = _given(trials=trials, sampler=sampler, pruner=pruner, patience=patience)
    values["search"] = values.get("search", {}) | given
    values["fallback"] = {"search_trials": 30}
    place = _place(storage, artifacts, data_dir, device, workers)
    _execute("search", place, values, _fixed(fix), file, dry_run)


@app.command()
def compare(
    data: Data = None,
    name: Name = None,
    file: File = None,
    arms: Arms = None,
    trials: Annotated[int | None, typer.Option("--trials", min=1, help="K: tuning points per arm.")] = None,
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
    values = _values(file, data=data, name=name, seeds=seeds, blocks=blocks, combine=combine, budget=budget)
    values |= _given(tune_trials=trials, arms=arms, target=target, margin=margin, seed=seed)
    values |= _given(stop_at_target=stop_at_target)
    values.pop("search", None)
    place = _place(storage, artifacts, data_dir, device, workers)
    if aa is not None:
        _run_aa(place, values, _fixed(fix), aa, (blocks,) if blocks else (1, 5))
        return
    values["fallback"] = {"arms": "default"}
    _execute("compare", place, values, _fixed(fix), file, dry_run)


@app.command()
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
    from study.workers import PARENT_VARIABLE, stop_on_signals

    stop = stop_on_signals()
    import torch

    torch.set_num_threads(threads)
    _quiet()
    from study.session import Session

    session = Session.join(_place(storage, artifacts, data_dir, device, 1), name)
    # A launched worker leaves the planning to its launcher and is ended by it; one started by hand plans too,
    # so it carries an experiment to its end alone if it must.
    launched = PARENT_VARIABLE in os.environ
    sampler_seed = worker_seed if worker_seed is not None else os.getpid()
    seed = session.experiment.seed * 1_000 + sampler_seed
    done = session.work(stop, seed, (lambda: False) if launched else session.planner.advance)
    if not launched:
        out.print(f"{done} trials finished.")


@app.command()
def show(
    name: Name = None,
    storage: Storage = DEFAULT_STORAGE,
    debug: Debug = False,
) -> None:
    """The tables of an experiment, or the list of experiments, in the terminal."""
    _quiet()
    from study.reading import open_reader, pick_name
    from study.terminal import print_comparison, print_experiments, print_search

    with open_reader(storage) as store:
        if name is None and len(store.experiments()) != 1:
            print_experiments(out, store)
            return
        name = pick_name(store, name)
        print_search(out, store, name)
        print_comparison(out, store, name)


@app.command()
def export(
    name: Name = None,
    storage: Storage = DEFAULT_STORAGE,
    folder: Annotated[Path, typer.Option("--out", help="Folder to write to.")] = Path("export"),
    format: Annotated[str, typer.Option("--format", help="csv or parquet.")] = "csv",
    debug: Debug = False,
) -> None:
    """Trials, learning curves, arms and recipes as CSV or Parquet and TOML files."""
    _quiet()
    from study.reading import export_tables, open_reader, pick_name

    with open_reader(storage) as store:
        for path in export_tables(store, pick_name(store, name), folder, format):
            out.print(f"{path}", soft_wrap=True)


@app.command()
def report(
    name: Name = None,
    storage: Storage = DEFAULT_STORAGE,
    artifacts: Artifacts = DEFAULT_ARTIFACTS,
    data_dir: DataDir = None,
    path: Annotated[
        Path | None, typer.Option("--out", help="File to write; default: reports/NAME.html.")
    ] = None,
    debug: Debug = False,
) -> None:
    """Write the HTML report of an experiment from its database; nothing is trained."""
    _quiet()
    from study.reading import open_reader, pick_name
    from study.report.page import write_report

    with open_reader(storage) as store:
        name = pick_name(store, name)
        written = write_report(store, name, path or Path("reports") / f"{name}.html", artifacts, data_dir)
    out.print(f"Report: {written}", soft_wrap=True)


@app.command()
def dashboard(
    storage: Storage = DEFAULT_STORAGE,
    artifacts: Artifacts = DEFAULT_ARTIFACTS,
    host: Annotated[str, typer.Option("--host", help="Address to listen on; it has no login.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=1, max=65535)] = 8080,
    open_browser: Annotated[bool, typer.Option("--open", help="Open it in the browser.")] = False,
    debug: Debug = False,
) -> None:
    """Serve the Optuna dashboard with this study's notes, plots and images."""
    _quiet()
    from study.dashboard import serve

    if open_browser:
        webbrowser.open(f"http://{host}:{port}")
    serve(storage, artifacts, host, port, lambda line: err.print(line, soft_wrap=True))


@app.command()
def techniques(
    file: File = None,
    debug: Debug = False,
) -> None:
    """List the techniques that can be compared: built-in ones and those of an experiment file."""
    from study.experiment import read_toml
    from study.techniques import catalogue
    from study.terminal import print_techniques

    print_techniques(out, catalogue(read_toml(file).get("techniques", {}) if file else {}))


def run() -> NoReturn:
    """Parse, run, and turn errors into one line and an exit code: 2 for usage, 1 for failure, 130 stopped."""
    from vae.errors import FailureError, UserError

    debug = "--debug" in sys.argv
    try:
        app(standalone_mode=True)
    except UserError as error:
        if debug:
            raise
        err.print(f"Error: {error}", soft_wrap=True, markup=False)
        raise SystemExit(1 if isinstance(error, FailureError) else 2) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    raise SystemExit(0)


def _execute(
    command: str,
    place: Place,
    values: dict[str, Any],
    fixed: dict[str, Any],
    file: Path | None,
    dry_run: bool,
) -> None:
    """Plan, run, time, report: the common course of run, search and compare."""
    _quiet()
    from study.progress import Progress, estimated_minutes
    from study.session import Session, check
    from study.terminal import print_comparison, print_plan, print_search

    source = str(file) if file else "command line"
    if dry_run:
        experiment, dataset = check(place, values, fixed, source)
        print_plan(out, experiment, dataset, place, estimated_minutes(experiment, dataset, place))
        return
    session = Session.prepare(place, values, fixed, source)
    experiment = session.experiment
    print_plan(out, experiment, session.data, place, estimated_minutes(experiment, session.data, place))
    with Progress(out, session.store, experiment) as progress:
        complete = session.launch(progress.update)
    if not complete:
        err.print("Stopped. Finished trials are kept, and the running ones were saved. To go on:")
        err.print("  " + _again(command), soft_wrap=True, markup=False)
        raise SystemExit(130)
    if experiment.arms:
        session.time_arms(lambda arm: out.print(f"timing {arm} against the baseline", style="dim"))
    kept = session.keep_best_model()
    print_search(out, session.store, experiment.name)
    print_comparison(out, session.store, experiment.name)
    if kept is not None:
        out.print(f"Best model: {kept}", soft_wrap=True)
    _report(session)


def _run_aa(
    place: Place, values: dict[str, Any], fixed: dict[str, Any], n: int, block_counts: tuple[int, ...]
) -> None:
    _quiet()
    from study.aa import AA, run_aa

    def on_result(result: AA) -> None:
        out.print(f"  seed {result.seed}: {result.ratio:.3f}x, p {result.p:.3f}, {result.verdict}")

    for blocks in block_counts:
        out.print(f"R = {blocks}: {n} A/A comparisons")
        results, rate = run_aa(place, values, fixed, n, blocks, on_result)
        low_p = sum(result.p < 0.05 for result in results)
        out.print(
            f"R = {blocks}: false verdicts {rate.k} of {rate.n} ({rate.share:.0%} [{rate.low:.0%}, {rate.high:.0%}]), "
            f"p below 0.05 in {low_p} of {len(results)}",
            soft_wrap=True,
        )


def _report(session: Session) -> None:
    from study.report.page import write_report

    name = session.experiment.name
    place = session.place
    path = write_report(
        session.store, name, Path("reports") / f"{name}.html", place.artifacts, place.data_dir
    )
    out.print(f"Report: {path}", soft_wrap=True)


def _again(command: str) -> str:
    """The command line to go on with, as it was typed."""
    import shlex

    program = "vae-study" if Path(sys.argv[0]).name == "vae-study" else "python -m study"
    return f"{program} {shlex.join(sys.argv[1:] or [command])}"


def _values(file: Path | None, **flags: Any) -> dict[str, Any]:
    """The experiment file's values with the given flags put over them."""
    values: dict[str, Any] = {}
    if file is not None:
        from study.experiment import read_toml

        values = read_toml(file)
    return values | _given(**flags)


def _given(**flags: Any) -> dict[str, Any]:
    return {key: value for key, value in flags.items() if value is not None}


def _fixed(assignments: list[str] | None) -> dict[str, Any]:
    """`--set field=value` as recipe fields."""
    from vae.errors import UserError
    from vae.recipe import parse_value

    fixed = {}
    for assignment in assignments or []:
        field, equals, text = assignment.partition("=")
        if not equals:
            raise UserError(f"--set {assignment}: write FIELD=VALUE, for example --set lr=3e-4.")
        fixed[field] = parse_value(field, text)
    return fixed


def _place(storage: str, artifacts: Path, data_dir: Path | None, device: str, workers: int | None) -> Place:
    from study.session import Place, cores

    return Place(storage, artifacts, data_dir, device, workers or cores())


def _quiet() -> None:
    """Optuna's own log lines would tear the live display."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
