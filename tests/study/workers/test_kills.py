"""Killed anywhere and run again, by any number of workers: the same trials and bit for bit the same table."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, ClassVar

import fake_training
import fsspec
import numpy as np
import optuna
import pandas as pd
import pytest
import torch
from fake_study import expire, scalar
from fake_training import FakeTraining, StopAfter
from fsspec.implementations.memory import MemoryFileSystem

from study.design.build import Request
from study.place import Place
from study.session import Session
from study.store import optuna_private, records
from study.store import store as storage
from study.store.claims import MAX_DEATHS, Claim
from study.store.locations import Local, Location, Remote, locate
from study.store.store import Store
from study.workers import trial as objective
from study.workers import worker as working
from study.workers.signals import stop_on_signals
from study.workers.trial import Trainer
from vae.errors import FailureError
from vae.grid import evaluation_grid

#: Columns that follow from the losses alone; the others are clocks, places, and ids in order of planning.
EXAMPLES = ["study_name", "number", "state", "arm", "block", "phase", "seed", "recipe", "outcome"]
EXAMPLES += [
    "value",
    "reason",
    "target",
    "hit",
    "examples_to_target",
    "score",
    "valid_loss",
    "best_valid_loss",
]
EXAMPLES += ["test_loss", "examples", "steps", "params_lr"]


class Killed(BaseException):
    """Nothing handles it, as nothing handles SIGKILL."""


class Bomb:
    """Goes off at the n-th of all the places where a process may die."""

    def __init__(self) -> None:
        self.left = -1
        self.went_off: list[str] = []

    def tick(self, place: str) -> None:
        self.left -= 1
        if self.left == 0:
            self.went_off.append(place)
            raise Killed

    def before_and_after(self, patch: pytest.MonkeyPatch, owner: Any, name: str) -> None:
        """Both sides of a call are such places."""
        plain = getattr(owner, name)

        def fused(*args: Any, **kwargs: Any) -> Any:
            self.tick(f"before {name}")
            result = plain(*args, **kwargs)
            self.tick(f"after {name}")
            return result

        patch.setattr(owner, name, fused)


def few_points(tau: int) -> Any:
    """Some ten evaluations."""
    return evaluation_grid(tau, ratio=1.8)


#: Saves at every evaluation and reports at every third grid point: more places to die at.
OFTEN: Any = Trainer(train=FakeTraining, grid=few_points, report_every=3, save_seconds=0.0)  # type: ignore[arg-type]


@pytest.fixture
def bomb(monkeypatch: pytest.MonkeyPatch) -> Bomb:
    """Fuses at every write, evaluation and enqueued trial; a death leaves its lease, as a real one does."""
    bomb = Bomb()
    monkeypatch.setattr(FakeTraining, "grid", staticmethod(few_points))
    monkeypatch.setattr(FakeTraining, "hook", staticmethod(lambda _: bomb.tick("evaluation")))
    monkeypatch.setattr(working, "_put_back", lambda store, claim: None)  # noqa: ARG005
    bomb.before_and_after(monkeypatch, optuna_private, "enqueue")
    bomb.before_and_after(monkeypatch, optuna_private, "tell")
    bomb.before_and_after(monkeypatch, objective, "save_state")
    for name in ("describe", "record", "truncate", "finish"):
        bomb.before_and_after(monkeypatch, Claim, name)
    return bomb


VALUES: dict[str, Any] = {"arms": ["twice", "never"], "seeds": 2, "tune_trials": 2, "tune_seeds": 2}
#: The target is given, so there is no calibration.
SMALL: dict[str, Any] = {"arms": ["twice"], "tune_trials": 1, "target": 20.0}


def run_to_the_end(folder: Path, **values: Any) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame, Any]:
    session = fake_training.prepare(folder, OFTEN, **VALUES | values)
    with session.store as store:
        session.run_here()
        trials = records.trials(store, "fake")
        return (
            trials[EXAMPLES],
            curves_of(store),
            fake_training.arms_table(fake_training.estimated(store)),
            list(records.study_ids(store, "fake")),
        )


def curves_of(store: Store) -> pd.DataFrame:
    by = ["arm", "block", "trial", "number"]
    return (
        records.curves(store, "fake")
        .drop(columns=["train_seconds", "trial_id"])
        .sort_values(by, ignore_index=True)
    )


def test_killed_at_random_and_resumed(tmp_path: Path, bomb: Bomb) -> None:
    """A comparison that dies at random places, again and again, ends with the same trials, the same rows of every
    curve and the same estimates as one that runs through."""
    (tmp_path / "through").mkdir()
    (tmp_path / "killed").mkdir()
    expected = run_to_the_end(tmp_path / "through")
    rng = np.random.default_rng(5)
    for _ in range(200):
        bomb.left = int(rng.integers(25, 150))  # a life that is no progress at all ends the trial after three
        try:
            found = run_to_the_end(tmp_path / "killed")
        except Killed:
            with Store.open(f"sqlite:///{tmp_path / 'killed' / 'optuna.db'}", create=True) as store:
                expire(store)
            continue
        break
    else:
        pytest.fail("never reached the end")
    assert len(bomb.went_off) >= 8
    assert len(set(bomb.went_off)) >= 5
    for a, b in zip(expected[:3], found[:3], strict=True):
        pd.testing.assert_frame_equal(a, b, check_exact=True)
    assert found[3] == expected[3]


@pytest.mark.parametrize("where", ["before save_state", "after record", "before tell"])
def test_killed_at_the_worst_places(tmp_path: Path, bomb: Bomb, where: str) -> None:
    """Between the rows and the saved state, between the result and Optuna's copy of it: nothing is lost, nothing is
    written twice."""
    seen = {"n": 0}
    plain = bomb.tick

    def tick(place: str) -> None:
        if place == where:
            seen["n"] += 1
            if seen["n"] in (3, 7):
                bomb.went_off.append(place)
                raise Killed
        plain(place)

    bomb.tick = tick  # type: ignore[method-assign]
    for _ in range(3):
        try:
            found = run_to_the_end(tmp_path, **SMALL)
            break
        except Killed:
            with Store.open(f"sqlite:///{tmp_path / 'optuna.db'}") as store:
                expire(store)
    assert bomb.went_off == [where] * 2
    trials, curves, _, _ = found
    assert set(trials["state"]) == {"COMPLETE"}
    assert len(trials) == 1 + 2 + 1 + 2 + 2
    assert not curves.duplicated(["arm", "trial", "number"]).any()
    for _, curve in curves.groupby(["arm", "trial"]):
        assert (curve["number"].diff().dropna() > 0).all()


def test_a_state_of_another_trial_is_not_resumed(tmp_path: Path, bomb: Bomb) -> None:
    """A saved state that doesn't belong to the trial, or is damaged, is thrown away and the trial runs from its
    start: the curve is the same."""
    (tmp_path / "through").mkdir()
    (tmp_path / "killed").mkdir()
    expected = run_to_the_end(tmp_path / "through", **SMALL)
    bomb.left = 35
    with pytest.raises(Killed):
        run_to_the_end(tmp_path / "killed", **SMALL)
    (state,) = (tmp_path / "killed" / "artifacts").rglob("trial-*.pt")
    state.write_bytes(state.read_bytes()[:50])
    with Store.open(f"sqlite:///{tmp_path / 'killed' / 'optuna.db'}") as store:
        assert scalar(store, "SELECT count(*) FROM curve") > 0
        expire(store)
    found = run_to_the_end(tmp_path / "killed", **SMALL)
    for a, b in zip(expected[:3], found[:3], strict=True):
        pd.testing.assert_frame_equal(a, b, check_exact=True)


REAL: dict[str, Any] = {
    "data": "digits",
    "budget": 2.0,
    "arms": ["dropout"],
    "tune_trials": 2,
    "target": 40.0,
}
REAL |= {"seeds": 2, "recipe": {"hidden": [16], "latent_size": 3, "ema_decay": 0.9}}


@contextmanager
def real(
    folder: Path, url: str | None = None, artifacts: Location | None = None, **values: Any
) -> Iterator[Session]:
    """A comparison of real trainings of the digits, at one thread in this process as in its workers."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    folder.mkdir(exist_ok=True)
    artifacts = artifacts or Local(folder / "artifacts")
    place = Place(url or f"sqlite:///{folder / 'optuna.db'}", artifacts, None, "cpu", 2)
    session = Session.prepare(place, Request(REAL | values, source="test"))
    with session.store:
        yield session
    torch.set_num_threads(threads)


def without(state: dict[str, Any], *path: Any) -> None:
    for key in path[:-1]:
        state = state[key]
    del state[path[-1]]


def put(state: dict[str, Any], value: Any, *path: Any) -> None:
    for key in path[:-1]:
        state = state[key]
    state[path[-1]] = value


#: What may be wrong with a state that loads: a change to {"training", "extra"}, or to the file's bytes.
UNFITTING: dict[str, Callable[[Any], object]] = {
    "nothing": lambda state: None,  # noqa: ARG005
    "step missing": lambda state: without(state, "training", "step"),
    "random missing": lambda state: without(state, "training", "random"),
    "number missing": lambda state: without(state, "training", "number"),
    "extra key": lambda state: put(state, 1, "training", "more"),
    "weights' shape": lambda state: put(state, torch.zeros(3), "training", "model", "output.bias"),
    "moments' shape": lambda state: put(
        state, torch.zeros(3), "training", "step", "rule", "rules", 0, "state", 0, "exp_avg"
    ),
    "steps' type": lambda state: put(state, "7", "training", "steps"),
    "average missing": lambda state: put(state, None, "training", "step", "average"),
    "another optimizer": lambda state: put(state, "muon", "training", "step", "rule", "optimizer"),
    "another grid": lambda state: put(state, 3, "training", "number"),
    "test loss' type": lambda state: put(state, "low", "extra", "test_loss"),
    "evaluations missing": lambda state: without(state, "extra", "evaluations"),
    "a bit": lambda content: content.__setitem__(len(content) // 2, content[len(content) // 2] ^ 1),
}


def test_an_unfitting_state_is_the_undisturbed_curve(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A state that can't be used, whatever is wrong with it, is thrown away and its trial runs from fresh weights: bit
    for bit the curve of one that nothing interrupted, and the worker says so. One that fits is gone on from."""
    curves = {}
    with real(tmp_path / "planned", tune_trials=1) as session:
        session.planner.advance()
    shutil.copytree(tmp_path / "planned", tmp_path / "stopped")
    with real(tmp_path / "stopped", tune_trials=1) as session:
        session.work(StopAfter(25), sampler_seed=0)
    for name, change in {"undisturbed": None, **UNFITTING}.items():
        folder = tmp_path / name.replace(" ", "-").replace("'", "")
        shutil.copytree(tmp_path / ("planned" if change is None else "stopped"), folder)
        if change is not None:
            (path,) = (folder / "artifacts").rglob("trial-*.pt")
            if name == "a bit":
                content = bytearray(path.read_bytes())
                change(content)
                path.write_bytes(content)
            else:
                state = torch.load(path, weights_only=True)
                change(state)
                torch.save(state, path)
        with real(folder, tune_trials=1) as session:
            runs = records.trials(session.store, "digits")
            trial = int(runs["trial_id"].min())
            session.work(StopAfter(10**9), sampler_seed=0)
            assert not list((folder / "artifacts").rglob("trial-*.pt"))
            rows = records.curves(session.store, "digits", [trial])
            curves[name] = rows.drop(columns=["train_seconds"])
            assert ("starts again" in caplog.text) == (name not in ("undisturbed", "nothing"))
            caplog.clear()
    for name, rows in curves.items():
        pd.testing.assert_frame_equal(curves["undisturbed"], rows, check_exact=True, obj=name)


def table(session: Session) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Calibration and confirmation trials, their curves, and the estimates: what is reported. Which tuning trials
    were capped, and when, is all that depends on who came first."""
    trials = records.trials(session.store, "digits")
    kept = trials[trials["phase"].isin(["confirm", "calibration"])]
    curves = records.curves(session.store, "digits", kept["trial_id"].tolist())
    arms = fake_training.arms_table(fake_training.estimated(session.store, "digits"))
    by = ["study_name", "phase", "seed"]
    columns = [c for c in EXAMPLES if c != "number"]
    rows = curves.sort_values(["arm", "phase", "seed", "number"], ignore_index=True)
    return (
        kept.sort_values(by, ignore_index=True)[columns],
        rows.drop(columns=["trial_id", "trial", "train_seconds"]),
        arms,
    )


LAUNCH = """
import os, sys, optuna
from pathlib import Path
if hasattr(os, "sched_setaffinity"):  # two workers on two cores: one thread each
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])
sys.path[:0] = [{root!r}, *{tests!r}]
from test_kills import real
from study.workers.launch import Ended
optuna.logging.set_verbosity(optuna.logging.ERROR)
with real(Path(sys.argv[1])) as session:
    sys.exit(session.launch(lambda: None) is not Ended.DONE)
"""


def launcher(folder: Path) -> subprocess.Popen[bytes]:
    root = Path(storage.__file__).parents[2]
    code = LAUNCH.format(
        root=str(root), tests=[str(Path(path).parent) for path in (__file__, fake_training.__file__)]
    )
    path = os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-c", code, str(folder)]
    return subprocess.Popen(command, env=os.environ | {"PYTHONPATH": path})


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[bytes], seconds: float = 200) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, f"ended with {process.returncode}"
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def test_real_trainings_by_workers_and_after_kill_9(tmp_path: Path) -> None:
    """Real trainings give bit for bit the same confirmation curves and the same table of examples whether one
    process runs them, or workers that are killed with SIGKILL in the middle, launcher and all, and then others."""
    with real(tmp_path / "alone") as session:
        session.run_here()
        alone = table(session)
    folder = tmp_path / "killed"
    with launcher(folder) as process:
        wait_for((folder / "optuna.db").exists, process)
        with Store.open(f"sqlite:///{folder / 'optuna.db'}") as store:
            running = "SELECT count(*) FROM trial_run WHERE outcome IS NULL AND owner IS NOT NULL"
            ended = "SELECT count(*) FROM trial_run WHERE outcome IS NOT NULL"
            wait_for(lambda: scalar(store, ended) >= 3 and scalar(store, running) >= 1, process)
            process.kill()
            for owner in records.trials(store, "digits")["owner"].dropna().unique():
                with suppress(ProcessLookupError):
                    os.kill(int(owner.split(":")[1]), signal.SIGKILL)
            process.wait()
            assert records.remaining(store, "digits") > 0
    with launcher(folder) as process:
        assert process.wait(timeout=250) == 0
    with real(folder) as session:
        assert session.planner.advance()
        for a, b in zip(alone, table(session), strict=True):
            pd.testing.assert_frame_equal(a, b, check_exact=True)


#: Long enough that most of the kills meet a trial, and with states saved on the way.
LONGER: dict[str, Any] = {
    "budget": 20.0,
    "target": 35.0,
    "tune_trials": 2,
    "seeds": 8,
    "stop_at_target": False,
}

#: Processes forked from one that has imported everything: as many real workers as are killed, started in no time.
FORKED = multiprocessing.get_context("forkserver")
FORKED.set_forkserver_preload(["study.session", "alembic.command", "optuna.storages._rdb.models", "psycopg"])


def join(place: Place, seed: int) -> None:
    """A worker that was started by hand: plans, trains, and ends when nothing is left."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    torch.set_num_threads(1)
    session = Session.join(place, "digits")
    session.trainer = Trainer(save_seconds=0.2)
    session.work(stop_on_signals(), seed, session.planner.advance)


class KillAfter(StopAfter):
    """Ends its own process with SIGKILL at the n-th time that somebody looks."""

    def is_set(self) -> bool:
        if super().is_set():
            os.kill(os.getpid(), signal.SIGKILL)
        return False


def work_and_die(place: Place, looks: int) -> None:
    """A worker that saves at every evaluation and is killed in its first trial."""
    torch.set_num_threads(1)
    session = Session.join(place, "digits")
    session.trainer = Trainer(save_seconds=0.0)
    session.work(KillAfter(looks), sampler_seed=0)


@pytest.mark.parametrize("how", ["stopped", pytest.param("killed", marks=pytest.mark.faults)])
def test_a_trial_goes_on_wherever_its_state_lies(
    how: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A worker is stopped, or killed with SIGKILL, in a trial whose state lies at a URL: another goes on from it, bit
    for bit to the curve of one that nothing interrupted, and no state is left."""
    places = {"undisturbed": None, "remote": locate(f"memory://{tmp_path.name}/files")}
    if how == "killed":
        places |= {"file": locate(f"file://{tmp_path}/files"), "remote": Remote(f"local://{tmp_path}/remote")}
    curves = {}
    for name, artifacts in places.items():
        with real(tmp_path / name, artifacts=artifacts) as session:
            session.planner.advance()
            if artifacts is not None and how == "killed":
                worker = FORKED.Process(target=work_and_die, args=(session.place, 25))
                worker.start()
                worker.join()
                assert worker.exitcode == -signal.SIGKILL
            elif artifacts is not None:
                session.work(StopAfter(25), sampler_seed=0)
            assert states(session) == ([] if artifacts is None else ["trial-0.pt"])
            session.work(StopAfter(10**9), sampler_seed=0)
            assert states(session) == []
            trials = records.trials(session.store, "digits")
            first = trials["trial_id"].min()
            assert trials.set_index("trial_id").loc[first, "attempt"] == (1 if artifacts is None else 2)
            curves[name] = records.curves(session.store, "digits", [first]).drop(columns=["train_seconds"])
            assert "starts again" not in caplog.text
    for name, rows in curves.items():
        pd.testing.assert_frame_equal(curves["undisturbed"], rows, check_exact=True, obj=name)


def states(session: Session) -> list[str]:
    """The saved states of an experiment's trials."""
    return [file.name for file in session.place.artifacts.files() if file.name.endswith(".pt")]


def test_a_store_out_of_reach_takes_no_state(tmp_path: Path) -> None:
    """A state that can't be read now is not taken for damaged: the trial is put back, and goes on from it later."""
    fsspec.register_implementation("away", Away, clobber=True)
    with real(tmp_path, artifacts=locate("away://bucket/x")) as session:
        session.planner.advance()
        session.work(StopAfter(25), sampler_seed=0)
        Away.is_away = True
        with pytest.raises(FailureError, match=r"^away://bucket/x can't be read: no route"):
            session.work(StopAfter(10**9), sampler_seed=0)
        Away.is_away = False
        assert states(session) == ["trial-0.pt"]
        assert set(records.trials(session.store, "digits")["state"]) == {"WAITING"}


class Away(MemoryFileSystem):  # type: ignore[misc]
    """A store that can be out of reach."""

    protocol = "away"
    store: ClassVar[dict[str, Any]] = {}
    is_away: ClassVar[bool] = False

    def info(self, path: str, **options: Any) -> Any:
        if self.is_away:
            raise ConnectionError("no route")
        return super().info(path, **options)


def died_by_pid(store: Store) -> dict[int, int]:
    """Process id of who holds an unfinished trial -> how many workers have died on it."""
    with store.read() as connection:
        query = "SELECT owner, died FROM trial_run WHERE outcome IS NULL AND owner IS NOT NULL"
        return {int(owner.split(":")[1]): died for owner, died in connection.exec_driver_sql(query)}


@pytest.mark.faults
@pytest.mark.timeout(2400)
@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_fifty_kills_over_a_comparison_change_no_figure(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Four workers of a comparison of real trainings are killed with SIGKILL at fifty random moments, and replaced:
    no trial fails, and confirmation curves and the table are bit for bit those of a run without a fault."""
    url = None if kind == "sqlite" else request.getfixturevalue("prepared_postgresql_url")
    began = time.monotonic()
    with real(tmp_path / "alone", **LONGER) as session:
        session.run_here()
        alone = table(session)
    # With what the kills cost, four workers on two cores take longer than half of that.
    pace = (time.monotonic() - began) / 2 / 55
    seed = random.SystemRandom().randrange(10**6)
    rng = random.Random(seed)
    folder = tmp_path / "killed"
    with real(folder, url, **LONGER) as session:
        store, place = session.store, session.place
        starts = itertools.count()
        workers: list[Any] = []
        n_kills = in_a_trial = 0
        began = time.monotonic()
        while n_kills < 50:
            workers = [worker for worker in workers if worker.exitcode is None]
            while len(workers) < 4:
                workers.append(FORKED.Process(target=join, args=(place, next(starts))))
                workers[-1].start()
            time.sleep(rng.uniform(0, 2 * pace))
            died = died_by_pid(store)
            # Most of them in a trial; some while it starts, plans or waits.
            holding = [worker for worker in workers if worker.pid in died]
            victim = rng.choice(holding if rng.random() < 0.8 else workers) if holding else None
            # Three times at one place of a trial, and it is given up.
            if victim is not None and died.get(victim.pid, 0) < MAX_DEATHS - 1:
                assert not session.planner.advance(), f"over before the last kill, seed {seed}"
                victim.kill()
                victim.join()
                n_kills += 1
                in_a_trial += victim.pid in died
        for worker in workers:
            worker.join()
        while not session.planner.advance():
            session.run_here()
        killed = table(session)
        trials = records.trials(store, "digits")
    print(
        f"{kind}: {n_kills} kills (seed {seed}), {in_a_trial} of them in a trial, in {time.monotonic() - began:.0f} s; "
        f"{len(trials)} trials, {int((trials['attempt'] > 1).sum())} taken over, most attempts "
        f"{trials['attempt'].max()}, failed {int((trials['state'] == 'FAIL').sum())}"
    )
    assert "FAIL" not in set(trials["state"])
    for a, b in zip(alone, killed, strict=True):
        pd.testing.assert_frame_equal(a, b, check_exact=True)
