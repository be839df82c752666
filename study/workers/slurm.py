"""Workers on a Slurm cluster: an array job of `study worker`, each a task of its own."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path

from study.place import Place
from study.store.database import Database
from study.terms import STORAGE_VARIABLE
from study.workers.processes import this_program
from vae.errors import FailureError, UserError

#: Seconds before its time limit at which a worker is told: it saves its trial, gives it back and ends.
WARNING = 120


def script(
    place: Place, name: str, *, time: str | None = None, gpus: int = 0, options: Sequence[str] = ()
) -> str:
    """What `sbatch` is given: an array of `place.workers` tasks, each a worker of NAME with its threads and GPUs.

    The database's URL isn't in it. `time` is the limit of each task as Slurm writes it, `options` further ones of
    sbatch, each "--name=value". Raises UserError for an option that is none."""
    if place.workers < 1:
        raise UserError("--workers 0: an array job needs at least one.")
    job = re.sub(r"[^A-Za-z0-9._-]", "-", name)
    lines = [
        f"--job-name=vae-study-{job}",
        f"--array=1-{place.workers}",
        f"--cpus-per-task={place.threads}",
        # B: to the batch shell, which is the worker itself once it is `exec`ed.
        f"--signal=B:USR1@{WARNING}",
        f"--output=slurm-{job}-%A_%a.out",
        "--open-mode=append",
    ]
    lines += [f"--time={time}"] if time else []
    lines += [f"--gres=gpu:{gpus}"] if gpus else []
    lines += options
    for line in lines:
        if not re.fullmatch(r"--?[A-Za-z][^\n\r]*", line):
            raise UserError(f"{line!r} is no option of sbatch: write it as in --sbatch=--partition=long.")
    worker = this_program("worker", "--name", name, "--threads", str(place.threads), *place.for_worker())
    return "\n".join(
        [
            "#!/bin/bash",
            *(f"#SBATCH {line}" for line in lines),
            f"# The database's URL comes in the environment, in {STORAGE_VARIABLE}.",
            f"cd {shlex.quote(str(Path.cwd()))} || exit 1",
            f"exec {shlex.join(worker)}",
            "",
        ]
    )


def submit(script: str, database: Database) -> str:
    """Hand the script to `sbatch`, with the URL in the job's environment; the job's number.

    Raises UserError where there is no sbatch, or the database is a file; FailureError, with what it said, where it
    refuses."""
    if database.path is not None:
        raise UserError(
            f"--storage {database.name} is a file, which several machines can't share: a cluster needs PostgreSQL, "
            "--storage postgresql+psycopg://user@host/database."
        )
    url = database.url.render_as_string(hide_password=False)
    try:
        done = subprocess.run(
            ["sbatch", "--parsable", "--export=ALL"],
            input=script,
            env=os.environ | {STORAGE_VARIABLE: url},
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError:
        raise UserError(
            "There is no sbatch here: start this on the cluster's login node, or print the script with --dry-run."
        ) from None
    if done.returncode != 0:
        raise FailureError(f"sbatch: {' '.join(done.stderr.split()) or f'exit code {done.returncode}'}")
    return done.stdout.strip().partition(";")[0]
