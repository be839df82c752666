"""A recipe on offer as a script of its own, with the data that it trains on."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

from study.analysis.advice import Use, offers
from study.analysis.standing import Standing
from study.design.own import require_sources
from study.protocol.stored import require_same_data
from vae.data.dataset import Dataset, load
from vae.errors import UserError
from vae.files import write_bytes
from vae.recipe import Recipe
from vae.script.write import Script, script, write_stored


@dataclass(frozen=True)
class Alone:
    """What `write` leaves in a folder: NAME-USE.py, and NAME-train.npy and NAME-valid.npy, which it takes."""

    name: str
    use: Use
    data: Dataset
    script: Script

    def paths(self, folder: Path) -> tuple[Path, Path, Path]:
        """Of the script, the training and the validation images."""
        return (
            folder / f"{self.name}-{self.use}.py",
            folder / f"{self.name}-train.npy",
            folder / f"{self.name}-valid.npy",
        )

    def command(self, folder: Path) -> str:
        """What trains it, a line to copy."""
        return shlex.join(["python", *map(str, self.paths(folder))])

    def write(self, folder: Path) -> list[Path]:
        """Write the three files; their paths. Raises FailureError."""
        script, train, valid = self.paths(folder)
        return [
            write_bytes(script, self.script.text.encode()),
            write_stored(train, self.data.train),
            write_stored(valid, self.data.valid),
        ]


def script_of(standing: Standing, use: str, data_dir: Path | None) -> Alone:
    """The recipe offered as `use`, of the experiment's data and budget. Nothing is trained, fetched or written.

    Raises UserError where there is no such recipe, it is no script, or the data isn't here or is other data."""
    recipe = _offered(standing, use)
    data = _data(standing, data_dir)
    return Alone(standing.name, Use(use), data, script(recipe, data, standing.workload.tau))


def _offered(standing: Standing, use: str) -> Recipe:
    if use not in set(Use):
        raise UserError(f"--recipe {use}: choose fastest, best or baseline.")
    offered = {offer.use: offer.recipe for offer in offers(standing)}
    if use not in offered:
        there = f"There is: {', '.join(offered)}." if offered else "There is none yet."
        raise UserError(f"--recipe {use}: experiment '{standing.name}' has no such recipe. {there}")
    return offered[Use(use)]


def _data(standing: Standing, data_dir: Path | None) -> Dataset:
    experiment = standing.experiment
    require_sources(experiment)  # before the code that makes the data would be run
    data = load(
        experiment.data,
        seed=experiment.seed,
        likelihood=experiment.recipe.likelihood,
        data_dir=data_dir,
        download=False,
    )
    require_same_data(standing.name, standing.fingerprint, data)
    return data
