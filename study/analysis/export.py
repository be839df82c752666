"""Readers of a database: nothing in it is changed."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from study.analysis.comparison import Comparison, estimate
from study.design.experiment import Experiment
from study.store import records
from study.store.store import Store
from vae.errors import FailureError, UserError, did_you_mean
from vae.recipe import Recipe


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


def experiment_of(store: Store, name: str) -> Experiment:
    """The stored experiment."""
    spec = store.load_experiment(name)
    assert spec is not None
    return Experiment.from_values(spec["experiment"], f"experiment '{name}'")


def comparison_of(store: Store, name: str) -> Comparison | None:
    """The comparison of an experiment; None where none was asked for."""
    spec = store.load_experiment(name)
    assert spec is not None
    if not spec["experiment"]["arms"]:
        return None
    return estimate(store, name, spec["n_train"])


def export_tables(store: Store, name: str, folder: Path, format: str) -> list[Path]:
    """Write every table of an experiment to a folder; the paths written. Raises UserError, FailureError."""
    if format not in ("csv", "parquet"):
        raise UserError(f"--format {format}: choose csv or parquet.")
    tables = {
        "trials": records.trials(store, name),
        "curves": records.curves(store, name),
        "throughput": records.throughput(store, name),
    }
    comparison = comparison_of(store, name)
    if comparison is not None:
        tables |= {"arms": comparison.arms, "combined": comparison.combined, "article": comparison.article}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return _write_tables(tables, folder, f"{name}-", format)
    except OSError as error:
        raise FailureError(f"--out {folder} can't be written to: {error.strerror}.") from None


def _write_tables(tables: dict[str, pd.DataFrame], folder: Path, prefix: str, format: str) -> list[Path]:
    written = []
    for key, table in tables.items():
        if table.empty:
            continue
        path = folder / f"{prefix}{key}.{format}"
        if format == "csv":
            table.to_csv(path, index=False)
        else:
            table.to_parquet(path, index=False)
        written.append(path)
    best = best_recipe(tables["trials"])
    if best is not None:
        path = folder / f"{prefix}best.toml"
        path.write_text(best.to_toml(), encoding="utf-8")
        written.append(path)
    return written


def best_recipe(trials: pd.DataFrame) -> Recipe | None:
    """The recipe of the search's best finished trial."""
    searched = trials[(trials["phase"] == "search") & (trials["state"] == "COMPLETE")]
    if searched.empty:
        return None
    best = int(searched["best_valid_loss"].argmin())
    return Recipe.from_json(str(searched["recipe"].iloc[best]))
