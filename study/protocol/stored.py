"""An experiment as the database has it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from study.design.experiment import Experiment
from study.design.workload import Workload
from study.store.artifacts import Artifacts
from study.store.locations import Location
from study.store.store import Store
from vae.errors import FailureError, UserError

if TYPE_CHECKING:
    from vae.data.dataset import Dataset  # torch, which who only reads does without


@dataclass(frozen=True)
class Stored:
    """A resolved experiment, and the data that it was started with."""

    experiment: Experiment
    fingerprint: str
    """SHA-256 of the data, with the split in it."""
    n_train: int
    artifacts: Mapping[str, Any] | None = None
    """Which folder of files is its own; None for one of before."""
    dimensions: int | None = None
    """See `Workload`."""

    def files(self, root: Location) -> Artifacts:
        """Its folder of files under `root`."""
        return Artifacts.of(root, self.experiment.name, self.artifacts)

    @property
    def workload(self) -> Workload:
        """What every arm shares beside its recipe."""
        return replace(self.experiment.workload(self.n_train), dimensions=self.dimensions)

    def to_spec(self) -> dict[str, Any]:
        """What `Store.save_experiment` keeps."""
        return {
            "experiment": self.experiment.to_json(),
            "data_fingerprint": self.fingerprint,
            "n_train": self.n_train,
            "artifacts": self.artifacts,
            "dimensions": self.dimensions,
        }


def find_stored(store: Store, name: str) -> Stored | None:
    """The experiment of that name; None where the database has none. Raises UserError for one that says what this
    program doesn't know, FailureError for one that it can't have written."""
    try:
        spec = store.load_experiment(name)
        return None if spec is None else _read(spec, name)
    except (LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise FailureError(
            f"What {store.database.name} says of experiment '{name}' can't be read ({type(error).__name__}: {error}): "
            "another program has written there. Set it right, or take a copy of before."
        ) from None


def _read(spec: Mapping[str, Any], name: str) -> Stored:
    files, dimensions = spec.get("artifacts"), spec.get("dimensions")
    return Stored(
        Experiment.from_values(spec["experiment"], f"experiment '{name}'"),
        str(spec["data_fingerprint"]),
        int(spec["n_train"]),
        None if files is None else {"folder": str(files["folder"]), "identity": files["identity"]},
        None if dimensions is None else int(dimensions),
    )


def stored(store: Store, name: str) -> Stored:
    """The experiment of that name. Raises UserError with what there is, where it isn't there."""
    found = find_stored(store, name)
    if found is None:
        raise store.no_experiment(name)
    return found


def require_same_data(name: str, fingerprint: str, data: Dataset) -> None:
    """Raises UserError for other data than that with this fingerprint, which experiment NAME was begun with."""
    if data.fingerprint != fingerprint:
        raise UserError(
            f"Experiment '{name}' was begun with data of SHA-256 {fingerprint[:12]}..., not {data.fingerprint[:12]}... "
            f"({data.name}): bring the same file and seed, name the folder of it by --data-dir, or use another --name."
        )
