"""The commands that put workers on a cluster: launch slurm and launch kubernetes."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from study.cli.options import DEFAULT_ARTIFACTS, DEFAULT_STORAGE, Artifacts, DataDir, Device, Storage
from study.cli.terminal import out, plural, quiet
from vae.command import grouped

launch = typer.Typer(
    name="launch",
    help="Workers for an experiment on a cluster: slurm or kubernetes.",
    rich_markup_mode=None,
)

Name = Annotated[str, typer.Option("--name", help="Name of the experiment to work on.")]
Workers = Annotated[int, typer.Option("--workers", min=1, help="Workers.")]
Threads = Annotated[int, typer.Option("--threads", min=1, help="CPUs of each worker.")]
Gpus = Annotated[int, typer.Option("--gpus", min=0, help="GPUs of each worker.")]


@launch.command()
@grouped
def slurm(
    name: Name,
    storage: Storage = DEFAULT_STORAGE,
    artifacts: Artifacts = DEFAULT_ARTIFACTS,
    data_dir: DataDir = None,
    device: Device = "auto",
    workers: Workers = 4,
    threads: Threads = 1,
    gpus: Gpus = 0,
    time: Annotated[
        str | None,
        typer.Option(
            "--time", metavar="LIMIT", help="Time limit of each, as 4:00:00; default: the partition's."
        ),
    ] = None,
    sbatch: Annotated[
        list[str] | None,
        typer.Option("--sbatch", metavar="OPTION", help="Another option of sbatch; may be repeated."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the script and stop.")] = False,
) -> None:
    """Submit an array job of workers; each saves its trial and gives it back before its time is over."""
    quiet()
    from study.place import Place
    from study.store.database import Database
    from study.store.locations import locate
    from study.workers.slurm import script, submit

    folder = locate(artifacts).absolute()
    place = Place(storage, folder, data_dir and data_dir.absolute(), device, workers, threads)
    text = script(place, name, time=time, gpus=gpus, options=sbatch or ())
    if dry_run:
        sys.stdout.write(text)
        return
    _require_experiment(storage, name)
    job = submit(text, Database.parse(storage))
    out.print(
        f"Job {job}: {plural(workers, 'worker')} of '{name}'. Watch: squeue -j {job}; end: scancel {job}.",
        soft_wrap=True,
    )


@launch.command()
@grouped
def kubernetes(
    name: Name,
    image: Annotated[str, typer.Option("--image", help="Container image with this program in it.")],
    claim: Annotated[
        str | None,
        typer.Option(
            "--claim", help="Persistent volume claim that is mounted at --artifacts, where that is a folder."
        ),
    ] = None,
    secret: Annotated[
        str, typer.Option("--secret", metavar="NAME/KEY", help="Secret with the database's URL.")
    ] = "vae-study/storage",
    artifacts: Artifacts = "/artifacts",
    data_dir: DataDir = None,
    device: Device = "auto",
    workers: Workers = 4,
    threads: Threads = 1,
    gpus: Gpus = 0,
) -> None:
    """Print the manifest of a Job of workers, for kubectl apply -f -."""
    from study.place import Place
    from study.store.locations import locate
    from study.workers.kubernetes import manifest

    place = Place("", locate(artifacts), data_dir, device, workers, threads)
    sys.stdout.write(manifest(place, name, image=image, secret=secret, claim=claim, gpus=gpus))


def _require_experiment(storage: str, name: str) -> None:
    """Raises UserError where workers would find nothing under that name."""
    from study.protocol.stored import stored
    from study.store.store import Store

    with Store.open(storage, read_only=True) as store:
        stored(store, name)
