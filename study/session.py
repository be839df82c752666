"""One command's work: open, plan, launch workers, time the arms, keep the best model."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import torch
from optuna.study import StudyDirection

from study.design.build import Request, build
from study.design.experiment import Experiment
from study.design.fits import require_batches, require_evaluation
from study.design.own import require_sources, to_try, with_sources
from study.design.workload import SMALL_DATA
from study.place import Place
from study.protocol.planner import Planner
from study.protocol.selection import State, winning_recipes
from study.protocol.stored import Stored, find_stored, require_same_data, stored
from study.store.artifacts import Artifacts
from study.store.database import WORKER_CONNECTIONS, Database
from study.store.outage import patiently
from study.store.owner import new_owner
from study.store.records import counts, study_ids
from study.store.setup import setup_lock
from study.store.store import Store
from study.workers.engine import Engine
from study.workers.launch import Ended, launch
from study.workers.splits import Splits
from study.workers.throughput import time_arms
from study.workers.trial import Objective, Trainer
from study.workers.worker import work
from vae.data.dataset import Dataset, load
from vae.devices import pick_device
from vae.errors import UserError
from vae.evaluation import least_loss
from vae.likelihoods import likelihood as known_likelihood
from vae.rehearsal import rehearse


class Session:
    """An experiment, its data and its database, open."""

    def __init__(
        self,
        place: Place,
        store: Store,
        experiment: Experiment,
        data: Dataset,
        artifacts: Artifacts,
        trainer: Trainer | None = None,
    ) -> None:
        self.place = place
        self.artifacts = artifacts
        self.trainer = trainer
        self.store = store
        self.experiment = experiment
        self.data = data
        self.workload = experiment.workload(len(data.train))
        self.planner = Planner(store, experiment, self.workload)

    @classmethod
    def prepare(cls, place: Place, request: Request, trainer: Trainer | None = None) -> Session:
        """Check everything, then store the resolved experiment. Raises UserError with nothing written."""
        experiment, data = check(place, request)
        store = Store.open(place.storage, create=True)
        with setup_lock(store):
            # Read again under the lock: another command of this name may have come first.
            before = stored_experiment(store, experiment.name, data)
            experiment = with_sources(build(request, len(data.train), before), before)
            _require_ours(store, experiment.name, is_new=before is None)
            kept = find_stored(store, experiment.name)
            artifacts = (
                kept.files(place.artifacts) if kept else Artifacts.make(place.artifacts, experiment.name)
            )
            artifacts.require()
            resolved = Stored(
                experiment,
                data.fingerprint,
                len(data.train),
                artifacts.to_store,
                data.size if known_likelihood(experiment.recipe.likelihood).levels else None,
            )
            store.save_experiment(experiment.name, resolved.to_spec())
        return cls(place, store, experiment, data, artifacts, trainer)

    @classmethod
    def join(cls, place: Place, name: str) -> Session:
        """The stored experiment of that name, for a worker. Raises UserError."""
        store = patiently(lambda: Store.open(place.storage, connections=WORKER_CONNECTIONS))
        kept = stored(store, name)
        experiment = kept.experiment
        require_sources(experiment)
        data = load(
            experiment.data,
            seed=experiment.seed,
            likelihood=experiment.recipe.likelihood,
            data_dir=place.data_dir,
        )
        require_same_data(name, kept.fingerprint, data)
        artifacts = kept.files(place.artifacts)
        artifacts.require()
        return cls(place, store, experiment, data, artifacts)

    def launch(self, on_progress: Callable[[], None], engine: Engine | None = None) -> Ended:
        """Run everything that is planned in workers, processes of this machine or where `engine` runs them; how that
        ended."""
        data_dir = self.place.data_dir
        place = replace(
            self.place,
            artifacts=self.place.artifacts.absolute(),
            data_dir=None if data_dir is None else data_dir.absolute(),
        )
        return launch(
            self.store,
            self.experiment.name,
            workers=place.workers,
            threads=place.threads,
            advance=self.planner.advance,
            on_progress=on_progress,
            engine=engine,
            extra_args=place.for_worker(),
        )

    def run_here(self) -> None:
        """Run everything that is planned in this process, one trial after another."""
        self.work(threading.Event(), sampler_seed=0, until=self.planner.advance)

    def work(self, stop: threading.Event, sampler_seed: int, until: Callable[[], bool] | None = None) -> int:
        """Run waiting trials in this process until none is left (see `study.workers.worker.work`)."""
        device = pick_device(self.place.device, worker=sampler_seed)
        splits = Splits(self.experiment, self.data, self.place.data_dir)
        objective = Objective(self.store, self.experiment, splits, device, self.artifacts, self.trainer)
        return work(
            self.store,
            self.experiment.name,
            objective.run,
            owner=new_owner(),
            make_study=lambda study_name: objective.make_study(study_name, sampler_seed),
            stop=stop,
            until=until,
        )

    def time_arms(self, say: Callable[[str], None]) -> None:
        """Measure the throughput factor of every arm that has none yet; `say` is told what is being done."""
        torch.set_num_threads(self.place.threads)
        time_arms(
            self.store,
            self.experiment.name,
            self.data,
            winning_recipes(self.experiment, self.planner.observe()),
            tau=self.workload.tau,
            device=pick_device(self.place.device),
            slice_seconds=0.05 if self.workload.small_data else 0.4,
            say=say,
        )


def check(place: Place, request: Request) -> tuple[Experiment, Dataset]:
    """The experiment and data that a command means, with all that can be refused refused; writes nothing.

    What is stored under the name stands in for what the command leaves out. Raises UserError."""
    pick_device(place.device)
    place.artifacts.require_writable("--artifacts")
    name, source = request.name, request.source
    kept = _peek(place.storage, name)
    before = None if kept is None else kept.experiment
    # Once before the data is there, which may be a download, and once with what the data decides.
    experiment = with_sources(build(request, SMALL_DATA - 1, before), before)
    likelihood = experiment.recipe.likelihood
    data = load(experiment.data, seed=experiment.seed, likelihood=likelihood, data_dir=place.data_dir)
    if data.code is not None and before is None:
        again = load(experiment.data, seed=experiment.seed, likelihood=likelihood, data_dir=place.data_dir)
        if again.fingerprint != data.fingerprint:
            raise UserError(
                f"{experiment.data} gives other data each time that it is called (SHA-256 {data.fingerprint[:12]}..., "
                f"then {again.fingerprint[:12]}...): every process calls it, so give what it draws a seed."
            )
    experiment = with_sources(build(request, len(data.train), before), before)
    if kept is not None:
        require_same_data(name, kept.fingerprint, data)
    require_batches(experiment, before, len(data.train), source)
    if before is None or not before.arms:
        require_evaluation(experiment, len(data.train), source)
    least = least_loss(data, likelihood)
    if experiment.target is not None and experiment.target <= least:
        raise UserError(
            f"{source}: target = {experiment.target:g} is out of reach: no model of these validation images has a "
            f"{likelihood} loss below {least:.2f} nats; give a higher one, or none to have it calibrated."
        )
    for where, recipe in to_try(experiment, before):
        try:
            rehearse(recipe, data, experiment.workload(len(data.train)).tau, pick_device(place.device))
        except UserError as error:
            raise UserError(f"{source}: {where}: {error}") from None
    return experiment, data


def _require_ours(store: Store, name: str, is_new: bool) -> None:
    """Raises UserError where studies of that name are another program's: those that a new experiment finds, and those
    that don't minimise one value."""
    for study_name, study_id in study_ids(store, name).items():
        if is_new or store.optuna.get_study_directions(study_id) != [StudyDirection.MINIMIZE]:
            raise UserError(
                f"{store.database.name} has a study '{study_name}' that this program did not make: use another --name "
                "or --storage."
            )


def _peek(storage: str, name: str) -> Stored | None:
    """What is stored under a name, if its database is there; nothing is created."""
    database = Database.parse(storage)
    if not database.check(create=True):
        return None
    with Store.open(storage, read_only=True) as store:
        return find_stored(store, name)


def finished_trials(place: Place, name: str) -> Counter[str]:
    """Finished trials of an experiment by phase; none where it or its database isn't there. Creates nothing."""
    finished: Counter[str] = Counter()
    if Database.parse(place.storage).check(create=True):
        with Store.open(place.storage, read_only=True) as store:
            for part in counts(store, name):
                finished[part.phase] += part.finished
    return finished


def calibrated_spread(place: Place, name: str) -> float | None:
    """The coefficient of variation of examples to target over an experiment's calibration seeds; None where fewer than
    two have reached it, or the experiment or its database isn't there. Creates nothing."""
    if not Database.parse(place.storage).check(create=True):
        return None
    with Store.open(place.storage, read_only=True) as store:
        kept = find_stored(store, name)
        calibration = None if kept is None else State(store, kept.experiment, kept.workload).calibration
    return None if calibration is None or calibration.hits < 2 else calibration.spread


def stored_experiment(store: Store, name: str, data: Dataset) -> Experiment | None:
    """The stored experiment of that name; None where there is none. Raises UserError for other data."""
    kept = find_stored(store, name)
    if kept is None:
        return None
    require_same_data(name, kept.fingerprint, data)
    return kept.experiment
