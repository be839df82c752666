"""Curves in files: CSV, Parquet and JSON lines, one file for all or a folder with one file a run."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from study.curves.table import Rows
from vae.errors import FailureError, UserError

#: Ending -> format.
ENDINGS = {".csv": "csv", ".parquet": "parquet", ".jsonl": "jsonl", ".ndjson": "jsonl"}


def read_file(path: Path, format: str, run: str | None = None) -> Rows:
    """A file's rows; `run` is its path in its folder. Raises UserError for what is no such file."""
    try:
        columns = READERS[format](path)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "it is no text in UTF-8"
        raise FailureError(f"{path} can't be read: {reason}.") from None
    return Rows(str(path), columns, run if run is not None else path.name)


def files_in(folder: Path) -> list[Path]:
    """The files of a folder that have a known ending, those below too, by name; no hidden ones."""
    try:
        found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in ENDINGS)
    except OSError as error:
        raise FailureError(f"{folder} can't be read: {error.strerror}.") from None
    return [
        path
        for path in found
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]


def _csv(path: Path) -> Mapping[str, list[Any]]:
    import pyarrow as pa
    from pyarrow import csv

    # An empty cell is no value; "nan" is one, of a run that broke down. pandas would make them the same.
    options = csv.ConvertOptions(null_values=[""], strings_can_be_null=True)
    try:
        return _columns(csv.read_csv(path, convert_options=options), path)
    except pa.ArrowInvalid as error:
        raise UserError(f"{path} is no CSV file: {_first_line(error)}.") from None


def _parquet(path: Path) -> Mapping[str, list[Any]]:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        return _columns(parquet.read_table(path), path)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise UserError(f"{path} is no Parquet file: {_first_line(error)}.") from None


def _columns(table: Any, path: Path) -> Mapping[str, list[Any]]:
    names = table.column_names
    twice = [name for name in dict.fromkeys(names) if names.count(name) > 1]
    if twice:
        raise UserError(f"{path} has two columns {twice[0]!r}: rename one.")
    return {name: table.column(i).to_pylist() for i, name in enumerate(names)}


def _json_lines(path: Path) -> Mapping[str, list[Any]]:
    rows: list[dict[str, Any]] = []
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise UserError(f"{path}, line {number}: no JSON ({_first_line(error)}).") from None
            if not isinstance(row, dict):
                raise UserError(f'{path}, line {number}: a row is an object, such as {{"arm": "adam", ...}}.')
            rows.append(_flat(row))
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}


def _flat(row: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Objects inside of objects by dotted names: {"config": {"lr": 1}} is "config.lr"."""
    found: dict[str, Any] = {}
    for key, value in row.items():
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0].rstrip(".")[:200]


READERS: Mapping[str, Callable[[Path], Mapping[str, list[Any]]]] = {
    "csv": _csv,
    "parquet": _parquet,
    "jsonl": _json_lines,
}
