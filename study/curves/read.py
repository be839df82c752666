"""Which reader a source needs: by what it is, or by the format that was named."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from study.curves.files import ENDINGS, READERS, files_in, read_file
from study.curves.recorded import Curves
from study.curves.table import Columns, Rows, to_curves
from vae.errors import UserError

FORMATS = (*READERS,)


def read(sources: Sequence[str], columns: Columns, format: str | None = None) -> Curves:
    """The runs of all sources together. A source is a file, or a folder with one file a run.

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
        found, what = _read(source, format)
        tables += found
        told.append(what)
    return to_curves(tables, columns, told)


def _read(source: str, format: str | None) -> tuple[list[Rows], str]:
    """(a source's tables, what it was read as)."""
    path = Path(source)
    if not path.exists():
        raise UserError(f"There is no {source}.")
    if path.is_dir():
        files = files_in(path)
        if format is not None:
            files = [file for file in files if ENDINGS[file.suffix.lower()] == format]
        if not files:
            raise UserError(f"{source} has no {_named(format)} in it.")
        tables = [
            read_file(file, ENDINGS[file.suffix.lower()], file.relative_to(path).as_posix()) for file in files
        ]
        return tables, f"{source}: {len(files)} file{'' if len(files) == 1 else 's'}"
    kind = format or ENDINGS.get(path.suffix.lower())
    if kind is None:
        raise UserError(f"{source}: which format is it? --format is one of {', '.join(FORMATS)}.")
    return [read_file(path, kind)], f"{source} ({kind})"


def _named(format: str | None) -> str:
    endings = [ending for ending, kind in ENDINGS.items() if format in (None, kind)]
    return f"file that ends with {' or '.join(endings)}"
