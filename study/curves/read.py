"""Which reader a source needs: by what it is, or by the format that was named."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from study.curves.files import ENDINGS, READERS, files_in, read_file
from study.curves.recorded import Curves
from study.curves.table import Columns, Rows, to_curves
from study.curves.trackers import EVENTS, read_mlflow, read_optuna, read_tensorboard, read_wandb
from study.store.foreign import kind_of
from study.store.url import shown
from vae.errors import UserError

#: Those of files, then those of trackers.
FORMATS = (*READERS, "tensorboard", "mlflow", "optuna", "wandb")
#: Characters of a source that isn't there, in a message.
LONGEST_NAME = 200


def read(sources: Sequence[str], columns: Columns, format: str | None = None) -> Curves:
    """The runs of all sources together. A source is a file, a folder with one file a run, what a tracker keeps
    or the URL of an Optuna database.

    Raises UserError for a source that isn't there or isn't what it is taken for; FailureError for one that can't be
    read."""
    if format is not None and format not in FORMATS:
        raise UserError(f"--format {format}: choose {', '.join(FORMATS)}.")
    if not sources:
        raise UserError(
            "Give files or folders with learning curves, or --name for an experiment of --storage."
        )
    tables: list[Rows] = []
    told: list[str] = []
    for source in sources:
        found, what = _read(source, columns, format)
        tables += found
        told.append(what)
    return to_curves(tables, columns, told)


def called(source: str) -> str:
    """What a source is called in a title and in a file's name: its last part, never a password."""
    if "://" in source:
        return shown(source).rpartition("/")[2].rpartition("@")[2]
    return Path(os.path.abspath(source)).name or "curves"


def _read(source: str, columns: Columns, format: str | None) -> tuple[list[Rows], str]:
    """(a source's tables, what it was read as)."""
    if "://" in source:
        if format not in (None, "optuna"):
            raise UserError(f"{shown(source)} with --format {format}: a database's URL is read as Optuna's.")
        return read_optuna(source, columns.maximise), f"{shown(source)} (optuna)"
    path = Path(source)
    try:
        is_there = path.exists()
    except OSError:  # a name that no file can have
        is_there = False
    if not is_there:
        raise UserError(f"There is no {source[:LONGEST_NAME]}.")
    kind = format or _kind(path)
    if kind == "tensorboard":
        if not path.is_dir():
            raise UserError(f"{source} with --format tensorboard: give the folder of its runs.")
        found = read_tensorboard(path, columns.value)
    elif kind == "mlflow":
        if _kind(path) != "mlflow":  # MLflow would make a store of it
            raise UserError(f"{source} is no store of MLflow's: give its mlruns folder or its mlflow.db.")
        found = read_mlflow(path, columns.value)
    elif kind == "optuna":
        found = read_optuna(source, columns.maximise)
    elif kind == "wandb":
        found = read_wandb(path, columns.value)
    elif path.is_dir():
        return _folder(path, kind)
    elif kind is None:
        raise UserError(f"{source}: which format is it? --format is one of {', '.join(FORMATS)}.")
    else:
        return [read_file(path, kind)], f"{source} ({kind})"
    return found, f"{source} ({kind}): {len(found)} run{'' if len(found) == 1 else 's'}"


def _kind(path: Path) -> str | None:
    """What a source is, by what lies in it; None for a folder of files, and for a file that isn't known."""
    if path.is_file():
        return kind_of(path) or ENDINGS.get(path.suffix.lower())
    if next(path.rglob(EVENTS), None) is not None:
        return "tensorboard"
    # MLflow's folder of files: an experiment a folder, each with its meta.yaml.
    return "mlflow" if next(path.glob("*/meta.yaml"), None) is not None else None


def _folder(path: Path, format: str | None) -> tuple[list[Rows], str]:
    """A folder with one file a run, named by its path below the folder."""
    files = [file for file in files_in(path) if format in (None, ENDINGS[file.suffix.lower()])]
    if not files:
        raise UserError(f"{path} has no {_named(format)} in it.")
    tables = [
        read_file(file, ENDINGS[file.suffix.lower()], file.relative_to(path).as_posix()) for file in files
    ]
    return tables, f"{path}: {len(files)} file{'' if len(files) == 1 else 's'}"


def _named(format: str | None) -> str:
    endings = [ending for ending, kind in ENDINGS.items() if format in (None, kind)]
    return f"file that ends with {' or '.join(endings)}"
