"""What `export` writes: the tables as CSV or Parquet, the recipes to use as TOML. Nothing in a database is changed."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from study.analysis.answer import offers
from study.analysis.arm import article_frame, combined_frame, to_frame
from study.analysis.evidence import Evidence
from study.store.store import Store
from vae.errors import FailureError, UserError, did_you_mean
from vae.files import write_bytes

FORMATS = ("csv", "parquet")


def open_reader(storage: str) -> Store:
    """The database for reading. Raises UserError, FailureError."""
    return Store.open(storage, read_only=True)


def pick_name(store: Store, name: str | None) -> str:
    """The experiment meant: the given one, or the only one. Raises UserError listing what there is."""
    names = store.experiments()
    if name is None and len(names) == 1:
        return names[0]
    if name in names:
        assert name is not None
        return name
    listed = ", ".join(names) or "none"
    if name is None:
        raise UserError(f"Which experiment? Give --name. Experiments in {store.database.name}: {listed}.")
    raise UserError(f"No experiment '{name}' in {store.database.name}. {did_you_mean(name, names)}")


def tables(evidence: Evidence) -> dict[str, pd.DataFrame]:
    """Every table of an experiment by name; empty ones are left out."""
    found = {"trials": evidence.table, "curves": evidence.curve_rows, "throughput": evidence.throughput}
    comparison = evidence.comparison
    if comparison is not None:
        found |= {
            "arms": to_frame(comparison.arms),
            "combined": combined_frame(comparison.combined),
            "article": article_frame(comparison.article),
        }
    return {key: table for key, table in found.items() if not table.empty}


def require_format(format: str) -> None:
    """Raise UserError for a format that isn't one of FORMATS."""
    if format not in FORMATS:
        raise UserError(f"--format {format}: choose csv or parquet.")


def export_tables(evidence: Evidence, folder: Path, format: str) -> list[Path]:
    """Write every table of an experiment and every recipe on offer to a folder; the paths written.

    Raises UserError, FailureError."""
    require_format(format)
    prefix = f"{evidence.name}-"
    written = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for key, table in tables(evidence).items():
            path = folder / f"{prefix}{key}.{format}"
            if format == "csv":
                table.to_csv(path, index=False)
            else:
                table.to_parquet(path, index=False)
            written.append(path)
        for offer in offers(evidence):
            path = folder / f"{prefix}{offer.use}.toml"
            written.append(write_bytes(path, offer.recipe.to_toml().encode()))
    except OSError as error:
        raise FailureError(f"--out {folder} can't be written to: {error.strerror}.") from None
    return written
