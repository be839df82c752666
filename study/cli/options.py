"""The options of the command line that several commands share; one name for a setting everywhere."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vae.errors import UserError

if TYPE_CHECKING:
    from study.place import Place

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
    int | None, typer.Option("--workers", min=1, help="Worker processes; default: one per GPU or core.")
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
SearchTrials = Annotated[
    int | None, typer.Option("--search-trials", help="Total trials of the search; default: 30.")
]
TuneTrials = Annotated[int | None, typer.Option("--tune-trials", help="K: tuning points per arm.")]
TuneSeeds = Annotated[
    int | None, typer.Option("--tune-seeds", help="Seeds that judge an arm's two best points; 1: no rerun.")
]
Seeds = Annotated[int | None, typer.Option("--seeds", help="S: confirmation seeds per arm.")]
Blocks = Annotated[int | None, typer.Option("--blocks", help="R: times that tuning is repeated.")]
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


def values_of(file: Path | None, **flags: Any) -> dict[str, Any]:
    """The experiment file's values with the given flags put over them. Raises UserError."""
    values: dict[str, Any] = {}
    if file is not None:
        from study.design.build import read_toml

        values = read_toml(file)
    return values | given(**flags)


def given(**flags: Any) -> dict[str, Any]:
    """The flags that were given."""
    return {key: value for key, value in flags.items() if value is not None}


def fixed_fields(assignments: list[str] | None) -> dict[str, Any]:
    """`--set field=value` as recipe fields. Raises UserError."""
    from vae.recipe import parse_value

    fixed = {}
    for assignment in assignments or []:
        field, equals, text = assignment.partition("=")
        if not equals:
            raise UserError(f"--set {assignment}: write FIELD=VALUE, for example --set lr=3e-4.")
        fixed[field] = parse_value(field, text)
    return fixed


def place_of(storage: str, artifacts: Path, data_dir: Path | None, device: str, workers: int | None) -> Place:
    """Where the command works."""
    from study.place import Place, default_workers

    return Place(storage, artifacts, data_dir, device, workers or default_workers(device))


def again(command: str) -> str:
    """The command line to go on with, as it was typed."""
    program = "vae-study" if Path(sys.argv[0]).name == "vae-study" else "python -m study"
    return f"{program} {shlex.join(sys.argv[1:] or [command])}"


def quiet() -> None:
    """Optuna's own log lines would tear the live display."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
