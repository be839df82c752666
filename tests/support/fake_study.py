"""A study without torch for the tests: small helpers, and a launcher and worker of short fake trainings.

python fake_study.py launch --storage URL --name digits --folder DIR --trials 20 --workers 4
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import optuna
import sqlalchemy
from optuna.trial import TrialState

from study.store import records
from study.store.claims import Claim, next_claim
from study.store.owner import new_owner
from study.store.schema import trial_run, unix_now
from study.store.setup import setup_lock
from study.store.store import Store
from study.terms import STORAGE_VARIABLE
from study.workers.engine import Engine
from study.workers.launch import Ended, launch
from study.workers.processes import LocalEngine
from study.workers.ray import RayEngine
from study.workers.signals import stop_on_signals
from study.workers.worker import Interrupted, work
from vae.errors import FailureError, UserError

PROGRAM = [sys.executable, str(Path(__file__).resolve())]
REPORT_EVERY = 4


def plan(store: Store, study_name: str, n_trials: int) -> optuna.Study:
    """A study with so many waiting trials; the first parameter is fixed beforehand."""
    study = optuna.create_study(study_name=study_name, storage=store.optuna, load_if_exists=True)
    for i in range(n_trials):
        study.enqueue_trial({"x": (i + 1) / 1000})
    return study


def load(store: Store) -> Callable[[str], optuna.Study]:
    return lambda study_name: optuna.load_study(study_name=study_name, storage=store.optuna)


def take(store: Store, owner: str, name: str = "digits") -> Claim:
    claim = next_claim(store, name, owner, load(store))
    assert claim is not None
    return claim


def row(number: int, **columns: Any) -> dict[str, Any]:
    return {"number": number, "examples": 100 * (number + 1), "steps": number + 1, **columns}


def finish(claim: Claim, value: float = 1.0) -> None:
    claim.finish(state=TrialState.COMPLETE, value=value, outcome="reached")


def expire(store: Store) -> None:
    """As if every lease had run out just now."""
    with store.write() as connection:
        connection.execute(trial_run.update().values(lease_expires=unix_now() - 0.01))


def scalar(store: Store, query: str) -> Any:
    with store.engine.connect() as connection:
        return connection.execute(sqlalchemy.text(query)).scalar()


def fake_loss(x: float, number: int) -> float:
    """Loss after evaluation `number`: the same for every attempt at a trial."""
    return 100 * math.exp(-number / 10) + x


def check_complete(store: Store, name: str, n_trials: int, n_rows: int) -> None:
    """Every trial finished exactly once, told to Optuna, with its whole curve in order."""
    trials, curves = records.trials(store, name), records.curves(store, name)
    assert len(trials) == n_trials
    assert set(trials["state"]) == {"COMPLETE"}
    assert set(trials["outcome"]) == {"reached"}
    assert list(trials["number"]) == list(range(n_trials))
    assert len(curves) == n_trials * n_rows
    for trial, (trial_id, curve) in zip(trials.itertuples(), curves.groupby("trial_id"), strict=True):
        assert trial.trial_id == trial_id
        assert list(curve["number"]) == list(range(n_rows))
        assert (curve["examples"].diff().dropna() > 0).all()
        expected = [fake_loss(trial.params_x, number) for number in range(n_rows)]
        assert list(curve["valid_loss"]) == expected
        assert trial.value == expected[-1]
    for study_name in records.study_ids(store, name):
        for trial in optuna.load_study(study_name=study_name, storage=store.optuna).trials:
            assert sorted(trial.intermediate_values) == list(range(REPORT_EVERY - 1, n_rows, REPORT_EVERY))


def events(folder: Path, kind: str) -> list[list[str]]:
    """What the workers noted: [owner, trial number, attempt] of each event of this kind."""
    lines = (folder / "events").read_text().splitlines()
    return [line.split()[1:] for line in lines if line.split()[0] == kind]


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


class Launcher:
    """A launcher in a process of its own, as from a terminal."""

    def __init__(self, url: str, folder: Path, *arguments: str) -> None:
        self.url = url
        self.folder = folder
        command = [
            *PROGRAM,
            "launch",
            "--storage",
            url,
            "--name",
            "digits",
            "--folder",
            str(folder),
            *arguments,
        ]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )

    def begun(self, n_trials: int) -> None:
        wait_for(lambda: (self.folder / "events").exists() and len(events(self.folder, "begin")) >= n_trials)

    def owners(self) -> list[int]:
        return [int(owner.split(":")[1]) for owner, _, _ in events(self.folder, "begin")]

    def output(self) -> str:
        """Wait for the end, then what it printed; `errors` has what it wrote to stderr."""
        output, self.errors = self.process.communicate(timeout=600)
        return output


def alive(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").exists() and " Z " not in Path(f"/proc/{pid}/stat").read_text()


class FakeTraining:
    """Records `n_rows` evaluations, one every `delay` seconds, with a checkpoint at each report."""

    sources: ClassVar[dict[str, Any]] = {}

    def __init__(self, folder: Path, n_rows: int, delay: float) -> None:
        self.folder = folder
        self.n_rows = n_rows
        self.delay = delay

    def run(self, claim: Claim, stop_requested: Callable[[], bool]) -> None:
        self.note("begin", claim)
        claim.describe(phase="fake", seed=claim.number, recipe=json.dumps({"x": 1}))
        x = claim.trial.suggest_float("x", 0, 1)
        checkpoint = self.folder / f"{claim.trial_id}.json"
        done = json.loads(checkpoint.read_text()) if checkpoint.exists() else -1
        claim.truncate(done)
        rows: list[dict[str, Any]] = []
        for number in range(done + 1, self.n_rows):
            time.sleep(self.delay)
            rows.append(row(number, valid_loss=fake_loss(x, number)))
            if number % REPORT_EVERY == REPORT_EVERY - 1:
                claim.record(rows)
                rows = []
                if number not in claim.reported:
                    claim.trial.report(fake_loss(x, number), number)
                self.save(checkpoint, number)
                if stop_requested():
                    claim.release()
                    self.note("release", claim)
                    raise Interrupted
        value = fake_loss(x, self.n_rows - 1)
        claim.finish(state=TrialState.COMPLETE, value=value, outcome="reached", rows=rows)
        self.note("end", claim)

    def save(self, checkpoint: Path, number: int) -> None:
        new = checkpoint.with_suffix(f".{os.getpid()}")
        new.write_text(json.dumps(number))
        new.rename(checkpoint)

    def note(self, kind: str, claim: Claim) -> None:
        with (self.folder / "events").open("a") as file:  # one short append: whole lines from any process
            file.write(f"{kind} {claim.owner} {claim.number} {claim.attempt}\n")


def run(arguments: list[str]) -> None:
    """The program; ends the process."""
    sys.exit(main(arguments))


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("mode", choices=["launch", "worker"])
    parser.add_argument("--storage", default=os.environ.get(STORAGE_VARIABLE))
    parser.add_argument("--name", required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--trials", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--rows", type=int, default=20)
    parser.add_argument("--delay", type=float, default=0.01)
    parser.add_argument("--lease", type=float, default=60.0)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--ray")
    parser.add_argument("--worker-seed", type=int)
    options = parser.parse_args(arguments)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        return run_worker(options) if options.mode == "worker" else run_launcher(options)
    except UserError as error:
        print(error, file=sys.stderr)
        return 1 if isinstance(error, FailureError) else 2


def run_worker(options: argparse.Namespace) -> int:
    stop = stop_on_signals()
    training = FakeTraining(options.folder, options.rows, options.delay)
    with Store.open(options.storage, lease=options.lease) as store:
        work(
            store,
            options.name,
            training.run,
            owner=new_owner(),
            make_study=load(store),
            stop=stop,
            until=lambda: False,
        )
    return 0


def run_launcher(options: argparse.Namespace) -> int:
    with Store.open(options.storage, create=True, lease=options.lease) as store:
        with setup_lock(store):
            study_name = f"{options.name}/search"
            n_planned = len(records.trials(store, options.name))
            plan(store, study_name, max(0, options.trials - n_planned))
        program = [*PROGRAM, "worker"]
        engine: Engine = LocalEngine(store.url, 1, program)
        if options.ray:
            engine = RayEngine.connect(store.database, address=options.ray, threads=1, program=program)
        print("planned", flush=True)
        extra_args = ["--folder", options.folder, "--rows", options.rows, "--delay", options.delay]
        ended = launch(
            store,
            options.name,
            workers=options.workers,
            threads=1,
            advance=lambda: records.remaining(store, options.name) == 0,
            on_progress=lambda: None,
            engine=engine,
            extra_args=[*map(str, extra_args), "--lease", str(options.lease)],
        )
    done = ended is Ended.DONE
    print("done" if done else "stopped; run the same command to go on", flush=True)
    return 0 if done else 130


if __name__ == "__main__":
    run(sys.argv[1:])
