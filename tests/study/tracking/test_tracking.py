"""`--log` and `study log`: what a tracker's own reader finds afterwards is what the database has, once."""

from __future__ import annotations

import json
import os
import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from command_line import Call
from fake_training import FAKE, Finished, prepare_search

from study.store import records
from study.store.store import Store
from study.tracking.follow import Kind, open_tracker, write_new
from study.tracking.runs import Tracker, finished_runs
from study.workers.processes import this_program

#: A message of a dependency about another: MLflow's models are of an older SQLAlchemy.
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning")


class Read(NamedTuple):
    """A run as the tracker's own reader gives it."""

    name: str
    tags: dict[str, str]
    params: dict[str, str]
    curve: dict[int, float]
    """Validation loss by examples."""
    best: float


def read_tensorboard(folder: Path) -> list[Read]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = []
    for run in sorted((folder / "runs" / "fake").iterdir()):
        events = EventAccumulator(str(run))
        events.Reload()
        start = events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
        from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

        values = HParamsPluginData.FromString(start).session_start_info.hparams
        told = {key: str(getattr(value, str(value.WhichOneof("kind")))) for key, value in values.items()}
        curve = {event.step: event.value for event in events.Scalars("valid_loss")}
        best = events.Scalars("result/best_valid_loss")[0].value
        found.append(Read(run.name.rpartition("-")[0], told, told, curve, best))
    return found


def read_mlflow(folder: Path) -> list[Read]:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("fake")
    assert experiment is not None
    found = []
    for run in client.search_runs([experiment.experiment_id]):
        assert run.info.status in ("FINISHED", "FAILED")
        history = client.get_metric_history(run.info.run_id, "valid_loss")
        curve = {metric.step: metric.value for metric in history}
        assert len(curve) == len(history)
        best = run.data.metrics["result.best_valid_loss"]
        found.append(Read(str(run.info.run_name), run.data.tags, run.data.params, curve, best))
    return found


def records_of(content: bytes) -> Iterator[bytes]:
    """The records of a .wandb file: LevelDB's log format (doc/log_format.md there) after seven bytes that say so."""
    at, part = 7, b""
    while at < len(content):
        left = 32768 - at % 32768
        if left < 7:  # the end of a block is filled
            at += left
            continue
        _, length, kind = struct.unpack_from("<IHB", content, at)
        part += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or its last part
            yield part
            part = b""


def read_wandb(folder: Path) -> list[Read]:
    from wandb.proto.wandb_internal_pb2 import Record

    found = []
    for path in sorted((folder / "wandb").glob("offline-run-*/*.wandb")):
        curve: dict[int, float] = {}
        config: dict[str, str] = {}
        name, best, ended = "", float("nan"), False
        for data in records_of(path.read_bytes()):
            record = Record.FromString(data)
            if record.HasField("run"):
                name = record.run.display_name
                config |= {item.key: str(json.loads(item.value_json)) for item in record.run.config.update}
            items = {
                item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item
            }
            if "valid_loss" in items:
                assert items["_step"] not in curve
                curve[items["_step"]] = items["valid_loss"]
            for item in record.summary.update:
                if (item.key or item.nested_key[0]) == "result/best_valid_loss":
                    best = json.loads(item.value_json)
            ended |= record.HasField("exit")
        assert ended
        found.append(Read(name, config, config, curve, best))
    return found


READERS: dict[Kind, Callable[[Path], list[Read]]] = {
    Kind.TENSORBOARD: read_tensorboard,
    Kind.MLFLOW: read_mlflow,
    Kind.WANDB: read_wandb,
}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A search of five trials, run to its end."""
    folder = tmp_path_factory.mktemp("small")
    session = prepare_search(folder, 5, trainer=FAKE)
    with session.store:
        session.run_here()
    return Finished(folder, {})


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder for the tracker, offline, with the tracker's own settings at their defaults."""
    for variable in list(os.environ):
        if variable.startswith(("WANDB_", "MLFLOW_")):
            monkeypatch.delenv(variable)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.chdir(tmp_path)
    return tmp_path


class DiesAfter:
    """A tracker whose process is killed in the middle of its n-th run."""

    def __init__(self, tracker: Tracker, n: int, die: Callable[[Any], object]) -> None:
        self._tracker, self._left, self._die = tracker, n, die
        self.place = tracker.place
        self.known = tracker.known

    def write(self, run: Any) -> None:
        self._left -= 1
        if self._left == 0:
            self._die(run)
            raise KeyboardInterrupt
        self._tracker.write(run)


def leave_half(kind: Kind, place: Path) -> Callable[[Any], object]:
    """What a process that is killed in the middle of a run leaves with the tracker."""

    def tensorboard(run: Any) -> None:
        (place / "runs" / "fake" / f".{run.key}-0a1b2c3d").mkdir(parents=True)

    def mlflow(run: Any) -> None:
        from mlflow.tracking import MlflowClient

        client = MlflowClient(f"sqlite:///{place / 'mlflow.db'}")
        experiment = client.get_experiment_by_name("fake")
        assert experiment is not None
        client.create_run(experiment.experiment_id, tags={"vae-study.trial": run.key}, run_name="half")

    def wandb(run: Any) -> None:
        folder = place / "wandb" / f"offline-run-20260101_000000-{run.key}"
        folder.mkdir(parents=True)
        (folder / f"run-{run.key}.wandb").write_bytes(b"half")

    return {Kind.TENSORBOARD: tensorboard, Kind.MLFLOW: mlflow, Kind.WANDB: wandb}[kind]


@pytest.mark.parametrize("kind", Kind)
def test_a_tracker_has_every_trial_once(kind: Kind, small: Finished, place: Path) -> None:
    """Every curve, tag, recipe and result is read back as it is in the database; killed in the middle of a run and
    begun again, and again, nothing is doubled or lost."""
    with small.open() as (store, _):
        dying = DiesAfter(open_tracker(kind, "fake"), 3, leave_half(kind, place))
        with pytest.raises(KeyboardInterrupt):
            write_new(store, "fake", dying, kind)
        trials = records.trials(store, "fake")
        assert write_new(store, "fake", open_tracker(kind, "fake"), kind) == len(trials) - 2
        assert write_new(store, "fake", open_tracker(kind, "fake"), kind) == 0
        curves = dict(iter(records.curves(store, "fake").groupby("trial_id")))
    found = {run.name: run for run in READERS[kind](place)}
    assert len(found) == len(READERS[kind](place)) == len(trials)
    for trial in trials.itertuples():
        run = found[f"{trial.arm}-{trial.phase}-{trial.number}"]
        for tag in ("arm", "phase", "seed", "block", "outcome"):
            assert run.tags[tag] == str(getattr(trial, tag))
        recipe = json.loads(trial.recipe)
        assert float(run.params["lr"]) == pytest.approx(recipe["lr"])
        assert run.params["optimizer"] == recipe["optimizer"]
        rows = curves[trial.trial_id]
        assert list(run.curve) == list(rows["examples"])
        assert list(run.curve.values()) == pytest.approx(list(rows["valid_loss"]), rel=1e-6)
        assert run.best == pytest.approx(trial.best_valid_loss, rel=1e-6)


def test_another_experiment_of_the_name_is_another(small: Finished, tmp_path: Path) -> None:
    """A trial's key is its own: no two of an experiment share one, nor do trials begun at another time."""

    def keys(folder: Path) -> list[str]:
        with Store.open(f"sqlite:///{folder / 'optuna.db'}", read_only=True) as store:
            return [run.key for run in finished_runs(store, "fake", ())]

    first = keys(small.folder)
    assert len(set(first)) == len(first) == 5
    later = small.copy(tmp_path / "later")
    with Store.open(f"sqlite:///{later / 'optuna.db'}") as store, store.write() as connection:
        connection.exec_driver_sql("UPDATE trial_run SET started = started + 0.001")
    assert not set(first) & set(keys(later))


def test_wrong_trackers_are_refused_before_anything_begins(call: Call, tmp_path: Path) -> None:
    """One line, exit code 2, and no database."""
    result = call("search", "--log", "mlfow", "--trials", "1")
    assert (result.code, result.out) == (2, "")
    assert result.err.strip() == "Error: --log mlfow: no such tracker. Did you mean 'mlflow'?"
    result = call("compare", "--aa", "2", "--log", "mlflow")
    assert result.code == 2
    assert "leave out --log" in result.err
    assert list(tmp_path.iterdir()) == []


def test_a_tracker_that_fails_is_said_in_one_line(
    call: Call, small: Finished, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What its library raises, exit code 1, no traceback."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nonsense://host")
    result = call("log", "mlflow", "--storage", f"sqlite:///{small.folder / 'optuna.db'}")
    assert result.code == 1
    assert result.err.startswith("Error: mlflow: ")
    assert len(result.err.strip().splitlines()) == 1


@pytest.mark.faults
@pytest.mark.timeout(600)
def test_a_tracker_that_fails_fails_no_trial(place: Path) -> None:
    """A search of real trainings with a tracker that doesn't answer and one that does: the search ends well, one line
    says which tracker was lost, and the other has every trial."""
    options = ["--trials", "3", "--budget", "2", "--workers", "1", "--threads", "1", "--name", "fake"]
    small = ["--set", "hidden=[16]", "--set", "latent_size=3", "--pruner", "none", "--sampler", "random"]
    logs = ["--log", "tensorboard", "--log", "mlflow"]
    done = subprocess.run(
        this_program("search", "--data", "digits", *options, *small, *logs),
        env=os.environ | {"MLFLOW_TRACKING_URI": "nonsense://host"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said = [line for line in done.stderr.splitlines() if "--log mlflow" in line]
    assert len(said) == 1
    assert "python -m study log mlflow" in said[0]
    assert "Traceback" not in done.stderr + done.stdout
    with Store.open(f"sqlite:///{place / 'optuna.db'}", read_only=True) as store:
        trials = records.trials(store, "fake")
    assert set(trials["outcome"]) <= {"completed", "collapsed"}  # two epochs may be too few for z
    assert len(read_tensorboard(place)) == len(trials) == 3
