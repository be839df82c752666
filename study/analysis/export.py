"""What `export` writes: the tables as CSV or Parquet, the recipes to use as TOML. Nothing in a database is changed."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path

import pandas as pd

from study.analysis.advice import Offer, Use, offers
from study.analysis.columns import article_frame, combined_frame, to_frame
from study.analysis.evidence import Evidence
from study.analysis.standing import Standing
from study.store.artifacts import Artifacts
from study.store.locations import Location
from vae.errors import FailureError, UserError
from vae.files import write_bytes, write_whole
from vae.recipe import Recipe

FORMATS = ("csv", "parquet")


def tables(evidence: Evidence) -> dict[str, pd.DataFrame]:
    """Every table of an experiment by name; empty ones are left out."""
    found = {
        "trials": evidence.table,
        "curves": evidence.curve_rows,
        "throughput": pd.DataFrame([asdict(timing) for timing in evidence.timings]),
    }
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
            write = table.to_csv if format == "csv" else table.to_parquet
            written.append(write_whole(path, partial(write, index=False)))
        for offer in offers(evidence):
            path = folder / f"{prefix}{offer.use}.toml"
            written.append(write_bytes(path, offer.recipe.to_toml().encode()))
    except OSError as error:
        raise FailureError(f"--out {folder} can't be written to: {error.strerror}.") from None
    return written


def keep_models(standing: Standing, files: Artifacts, say: Callable[[str], None]) -> dict[Use, Location]:
    """Copy the model behind every recipe on offer, with its recipe, to fastest.safetensors, best, baseline among the
    experiment's files; where they lie. `say` is told of a model that is gone.

    Raises FailureError where they can't be written."""
    kept = {}
    for offer, model, recipe in _models(standing, files, say):
        kept[offer.use] = files.path / f"{offer.use}.safetensors"
        with model.local() as file:
            kept[offer.use].save(partial(write_whole, write=partial(shutil.copyfile, file)))
        (files.path / f"{offer.use}.toml").save(partial(write_bytes, content=recipe.to_toml().encode()))
    return kept


def export_models(
    standing: Standing, files: Artifacts, folder: Path, say: Callable[[str], None]
) -> list[Path]:
    """Copy the model behind every recipe on offer to a folder of this machine, wherever it is kept; the paths written.
    `say` is told of a model that is gone.

    Raises FailureError."""
    written = []
    for offer, model, _ in _models(standing, files, say):
        with model.local() as file:
            path = folder / f"{standing.name}-{offer.use}.safetensors"
            write_whole(path, partial(shutil.copyfile, file))
        written.append(path)
    return written


def _models(
    standing: Standing, files: Artifacts, say: Callable[[str], None]
) -> Iterator[tuple[Offer, Location, Recipe]]:
    """What is on offer with the model that was kept of it, and that one's recipe."""
    for offer in offers(standing):
        if offer.run is None or offer.run.recipe is None:
            continue
        model = files.model(offer.run.study, offer.run.number)
        if not model.exists():
            say(
                f"No model of {offer.arm}, {offer.use.words}: {model} is not there. It was deleted, written on "
                "another machine or to another --artifacts folder, or trained before such models were kept; "
                "`python -m vae train --recipe` trains it anew from the recipe that `python -m study export` writes."
            )
            continue
        yield offer, model, offer.run.recipe
