"""The options that several commands share, in groups; one name for a setting everywhere.

A command takes a group as one parameter: `vae.command.grouped` puts each option of it on the command line.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vae.errors import UserError

if TYPE_CHECKING:
    from study.design.build import Request
    from study.place import Place
    from study.workers.ray import RayEngine

Name = Annotated[str | None, typer.Option("--name", help="Name of the experiment; default: the data's name.")]
OneName = Annotated[str | None, typer.Option("--name", help="Name of the experiment; default: the only one.")]
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
Artifacts = Annotated[
    str,
    typer.Option(
        "--artifacts",
        metavar="FOLDER|URL",
        help="Where models, states and images lie; a URL as s3://bucket/folder.",
    ),
]
DataDir = Annotated[Path | None, typer.Option("--data-dir", help="Folder that is searched for data first.")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:N or mps.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Check everything, print the plan and stop.")]
Json = Annotated[
    bool, typer.Option("--json", help="Print one JSON document alone; everything else goes to stderr.")
]

DEFAULT_STORAGE = "sqlite:///optuna.db"
DEFAULT_ARTIFACTS = "artifacts"
REPORTS = Path("reports")


@dataclass(frozen=True)
class ExperimentOptions:
    """What every command that trains may be told of its experiment."""

    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            metavar="NAME|PATH|CODE",
            help="digits, mnist, fashion-mnist, kmnist, a .npy or .npz file, a folder of images, "
            "or file.py:factory of your own.",
        ),
    ] = None
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            metavar="NAME|CODE",
            help="The network, as --set model=...: mlp, conv, or file.py:factory of your own. Default: mlp.",
        ),
    ] = None
    name: Name = None
    file: File = None
    budget: Annotated[
        float | None,
        typer.Option("--budget", help="tau: epochs a training may last; default: 40 on small data, else 10."),
    ] = None
    seed: Annotated[
        int | None,
        typer.Option("--seed", help="Seeds the split, the tuning points and every training; default: 0."),
    ] = None
    fix: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="FIELD=VALUE", help="Fix a recipe field; may be repeated."),
    ] = None

    def request(
        self,
        without: str = "",
        search: Mapping[str, Any] | None = None,
        defaults: Mapping[str, Any] | None = None,
        **flags: Any,
    ) -> Request:
        """The file's values but `without`, with these options and the command's own flags over them. Raises
        UserError."""
        from study.design.build import Request, read_toml

        values = {} if self.file is None else read_toml(self.file)
        values.pop(without, None)
        values |= given(data=self.data, name=self.name, budget=self.budget, seed=self.seed, **flags)
        if search is not None:
            values["search"] = values.get("search", {}) | given(**search)
        source = "command line" if self.file is None else str(self.file)
        fixed = fixed_fields(self.fix)
        if self.model is not None and fixed.get("model", self.model) != self.model:
            raise UserError(f"--model {self.model} and --set model={fixed['model']}: say one network.")
        fixed = given(model=self.model) | fixed
        return Request(values, fixed, defaults or {}, source)


@dataclass(frozen=True)
class ComparisonOptions:
    """What a comparison may be told beside its tuning points."""

    arms: Annotated[
        str | None,
        typer.Option(
            "--arms",
            help="Comma-separated techniques; also 'default' or 'all'. The command techniques lists them.",
        ),
    ] = None
    tune_seeds: Annotated[
        int | None,
        typer.Option(
            "--tune-seeds",
            help="Only for experiments begun before guided tuning: seeds that judge an arm's two best points.",
        ),
    ] = None
    seeds: Annotated[
        int | None, typer.Option("--seeds", help="S: confirmation seeds per arm, in total; default: 20.")
    ] = None
    blocks: Annotated[
        int | None,
        typer.Option(
            "--blocks",
            help="R: times that tuning and confirmation are repeated, each with a split of the data of its own and on "
            "S / R seeds; default: 1.",
        ),
    ] = None
    combine: Annotated[
        bool | None,
        typer.Option("--combine/--no-combine", help="Also test the best technique of each slot together."),
    ] = None
    target: Annotated[
        float | None, typer.Option("--target", help="Validation loss to reach; default: calibrated.")
    ] = None
    margin: Annotated[
        float | None,
        typer.Option(
            "--margin", help="A speed-up within this of 1 is no verdict; default: 0.02, which is 2 %."
        ),
    ] = None

    @property
    def values(self) -> dict[str, Any]:
        """Fields of Experiment; None: not given."""
        return asdict(self)


@dataclass(frozen=True)
class PlaceOptions:
    """Where a command that trains may be told to work."""

    storage: Storage = DEFAULT_STORAGE
    artifacts: Artifacts = DEFAULT_ARTIFACTS
    data_dir: DataDir = None
    workers: Annotated[
        int | None, typer.Option("--workers", min=1, help="Worker processes; default: one per GPU or core.")
    ] = None
    threads: Annotated[
        int | None,
        typer.Option(
            "--threads",
            min=1,
            help="Threads of each worker; default: its share of the cores, OMP_NUM_THREADS at most.",
        ),
    ] = None
    device: Device = "auto"
    log: Annotated[
        list[str] | None,
        typer.Option(
            "--log",
            metavar="TRACKER",
            help="Also write each trial to mlflow, tensorboard or wandb; may be repeated.",
        ),
    ] = None

    engine: Annotated[
        str,
        typer.Option(
            "--engine",
            help="What runs the workers: local (processes of this machine), ray, or none: plan, and wait for workers "
            "that join.",
        ),
    ] = "local"
    ray_address: Annotated[
        str | None,
        typer.Option(
            "--ray-address",
            metavar="HOST:PORT",
            help="With --engine ray: the head of the cluster; default: that of the cluster this machine is in.",
        ),
    ] = None
    gpus_per_worker: Annotated[
        float | None,
        typer.Option(
            "--gpus-per-worker", min=0, help="With --engine ray: 0.25 puts four on a GPU; default: 0."
        ),
    ] = None

    def cluster(self) -> RayEngine | None:
        """The Ray cluster meant, connected to; None: this machine. Raises UserError."""
        if self.engine not in ("local", "ray", "none"):
            raise UserError(f"--engine {self.engine}: local, ray or none.")
        if self.engine == "none" and self.workers is not None:
            raise UserError("--workers goes with --engine local or ray: none starts none.")
        if self.engine != "ray":
            of_ray = {"--ray-address": self.ray_address, "--gpus-per-worker": self.gpus_per_worker}
            for flag in (flag for flag, value in of_ray.items() if value is not None):
                raise UserError(f"{flag} goes with --engine ray.")
            return None
        from study.store.database import Database
        from study.workers.ray import RayEngine

        return RayEngine.connect(
            Database.parse(self.storage),
            address=self.ray_address,
            threads=self.threads or 1,
            gpus_per_worker=self.gpus_per_worker or 0,
        )

    def place(self, cluster: RayEngine | None = None) -> Place:
        """The place meant. Raises UserError for a device that isn't there."""
        from study.place import Place, default_threads, default_workers
        from study.store.locations import locate

        artifacts = locate(self.artifacts)
        if cluster is not None:
            workers, threads = self.workers or cluster.room(), self.threads or 1
            return Place(
                self.storage, artifacts, self.data_dir, self.device, workers, threads, is_cluster=True
            )
        workers = 0 if self.engine == "none" else self.workers or default_workers(self.device)
        threads = self.threads or default_threads(workers)
        return Place(self.storage, artifacts, self.data_dir, self.device, workers, threads)


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
