"""An experiment as the database has it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from study.design.experiment import Experiment
from study.design.workload import Workload
from study.store.store import Store
from vae.errors import UserError, did_you_mean


@dataclass(frozen=True)
class Stored:
    """A resolved experiment, and the data that it was started with."""

    experiment: Experiment
    fingerprint: str
    """SHA-256 of the data, with the split in it."""
    n_train: int

    @property
    def workload(self) -> Workload:
        """What every arm shares beside its recipe."""
        return self.experiment.workload(self.n_train)

    def to_spec(self) -> dict[str, Any]:
        """What `Store.save_experiment` keeps."""
        return {
            "experiment": self.experiment.to_json(),
            "data_fingerprint": self.fingerprint,
            "n_train": self.n_train,
        }


def find_stored(store: Store, name: str) -> Stored | None:
    """The experiment of that name; None where the database has none. Raises UserError for one it can't read."""
    spec = store.load_experiment(name)
    if spec is None:
        return None
    experiment = Experiment.from_values(spec["experiment"], f"experiment '{name}'")
    return Stored(experiment, str(spec["data_fingerprint"]), int(spec["n_train"]))


def stored(store: Store, name: str) -> Stored:
    """The experiment of that name. Raises UserError with what there is, where it isn't there."""
    found = find_stored(store, name)
    if found is None:
        names = store.experiments()
        raise UserError(f"No experiment '{name}' in {store.database.name}. {did_you_mean(name, names)}")
    return found
