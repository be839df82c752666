"""Workers on Slurm and Kubernetes: what is submitted, what is refused, a signal's end, and a real Slurm of one node."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import kubernetes_validate
import pytest
import yaml
from command_line import Call
from fake_study import PROGRAM, events, plan, wait_for
from slurm_cluster import is_possible, slurm_cluster

from study.design.build import Request
from study.place import Place
from study.session import Session
from study.store import records
from study.store.locations import Local, locate
from study.store.store import Store
from study.terms import STORAGE_VARIABLE
from study.workers.kubernetes import manifest
from study.workers.slurm import script
from vae.errors import UserError

ROOT = Path(__file__).resolve().parents[3]


def place(workers: int = 3, threads: int = 2) -> Place:
    return Place("", Local(Path("/shared/my files")), None, "auto", workers, threads)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_worker_that_is_asked_to_end_gives_its_trial_back(
    sqlite_url: str, tmp_path: Path, number: signal.Signals
) -> None:
    """As before a time limit: exit code 0, and the trial waits, with nobody's death counted."""
    with Store.open(sqlite_url, create=True) as store:
        plan(store, "digits/search", 1)
        command = [*PROGRAM, "worker", "--storage", sqlite_url, "--name", "digits"]
        command += ["--folder", str(tmp_path), "--rows", "4000", "--delay", "0.02"]
        with subprocess.Popen(command) as worker:
            wait_for(lambda: (tmp_path / "events").exists())
            worker.send_signal(number)
            assert worker.wait(timeout=60) == 0
        assert len(events(tmp_path, "release")) == 1
        trials = records.trials(store, "digits")
        assert list(trials["state"]) == ["WAITING"]
        assert list(trials["died"]) == [0]


def test_the_script_is_an_array_of_workers() -> None:
    """bash finds no fault with it; its worker's command line is whole, whatever is in a name."""
    text = script(
        place(), "it's $(x) `y`", time="4:00:00", gpus=1, options=["--partition=long", "-A physics"]
    )
    options = [line.removeprefix("#SBATCH ") for line in text.splitlines() if line.startswith("#SBATCH")]
    assert options == [
        "--job-name=vae-study-it-s---x---y-",
        "--array=1-3",
        "--cpus-per-task=2",
        "--signal=B:USR1@120",
        "--output=slurm-it-s---x---y--%A_%a.out",
        "--open-mode=append",
        "--time=4:00:00",
        "--gres=gpu:1",
        "--partition=long",
        "-A physics",
    ]
    shown = text.replace(f"exec {sys.executable} -P -c", "printf '%s\\n'")
    assert shown != text
    done = subprocess.run(["bash"], input=shown, capture_output=True, text=True, check=True)
    arguments = ["worker", "--name", "it's $(x) `y`", "--threads", "2", "--device", "auto", "--artifacts"]
    assert done.stdout.splitlines()[-9:] == [*arguments, "/shared/my files"]
    for options_ in (["partition=long"], ["--a\nrm -r x"], [""]):
        with pytest.raises(UserError, match="is no option of sbatch"):
            script(place(), "digits", options=options_)
    with pytest.raises(UserError, match="is no option of sbatch"):
        script(place(), "digits", time="1\nrm")


SBATCH = """#!/bin/bash
echo "$@" > arguments; cat > script; echo "$VAE_STUDY_STORAGE" > url
[ -e refuse ] && { echo 'sbatch: error: invalid partition' >&2; exit 1; }
echo '42;cluster'
"""


def test_what_sbatch_is_given(
    call: Call, prepared_postgresql_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A recorded sbatch: the URL with its password goes by the environment alone, what it refuses is said in a line,
    and a missing experiment, a file as the database and a missing sbatch are refused before."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "sbatch").write_text(SBATCH)
    (folder / "sbatch").chmod(0o755)
    url = prepared_postgresql_url
    assert call("launch", "slurm", "--name", "digits", "--storage", url).code == 2
    values = {"data": "digits", "name": "digits", "search": {"trials": 1}}
    with Session.prepare(Place(url, Local(tmp_path / "artifacts"), None, "cpu", 1), Request(values)).store:
        pass
    arguments = ("launch", "slurm", "--name", "digits", "--storage", url, "--workers", "2")
    monkeypatch.setenv("PATH", "")
    assert "There is no sbatch here" in call(*arguments).err
    monkeypatch.setenv("PATH", os.pathsep.join([str(folder), os.defpath]))
    done = call(*arguments)
    assert (done.code, done.out.split(":")[0]) == (0, "Job 42")
    assert Path("url").read_text().strip() == url.replace("postgresql://", "postgresql+psycopg://")
    password = url.split(":")[2].split("@")[0]
    assert password not in Path("script").read_text() + Path("arguments").read_text() + done.out
    assert Path("script").read_text() == call(*arguments, "--dry-run").out
    Path("refuse").touch()
    refused = call(*arguments)
    assert (refused.code, refused.err.strip()) == (1, "Error: sbatch: sbatch: error: invalid partition")


def test_a_file_is_no_database_for_a_cluster(call: Call, tmp_path: Path) -> None:
    """Refused with the way out."""
    url = f"sqlite:///{tmp_path / 'optuna.db'}"
    values = {"data": "digits", "name": "digits", "search": {"trials": 1}}
    with Session.prepare(Place(url, Local(tmp_path / "artifacts"), None, "cpu", 1), Request(values)).store:
        pass
    done = call("launch", "slurm", "--name", "digits", "--storage", url)
    assert done.code == 2
    assert "a cluster needs PostgreSQL" in done.err


@pytest.mark.parametrize("gpus", [0, 2])
@pytest.mark.parametrize("name", ["digits", "Große Läufe $(HOME) $$2", "-", "x" * 200])
def test_the_manifest_is_a_job_of_the_schema(name: str, gpus: int) -> None:
    """Kubernetes' own OpenAPI accepts it strictly; the URL comes from the Secret; a pod has the grace to save."""
    text = manifest(place(), name, image="registry/vae-study:1", secret="vae-study/url", claim="a", gpus=gpus)
    job = yaml.safe_load(text)
    kubernetes_validate.validate(job, "1.31", strict=True)
    assert len(job["metadata"]["name"]) <= 63
    assert job["spec"]["parallelism"] == job["spec"]["completions"] == 3
    pod = job["spec"]["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] >= 60
    (worker,) = pod["containers"]
    arguments = [argument.replace("$$", "$") for argument in worker["args"]]
    assert arguments[:4] == ["--name", name, "--threads", "2"]
    assert "$(HOME)" not in "".join(worker["args"]).replace("$$(", "")
    (variable,) = worker["env"]
    assert variable["name"] == STORAGE_VARIABLE
    assert variable["valueFrom"]["secretKeyRef"] == {"name": "vae-study", "key": "url"}
    assert worker["resources"].get("limits") == ({"nvidia.com/gpu": 2} if gpus else None)
    elsewhere = replace(place(), artifacts=locate("memory://bucket/x"))
    without = yaml.safe_load(manifest(elsewhere, name, image="i", secret="vae-study/url", claim=None))
    kubernetes_validate.validate(without, "1.31", strict=True)
    assert "memory://bucket/x" in str(without)
    assert "olume" not in str(without)
    broken = yaml.safe_load(text)
    broken["spec"]["parallelism"] = "many"
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, "1.31", strict=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "--claim: name the persistent volume claim"),
        (("--claim", "A b"), "--claim A b is no name"),
        (("--claim", "a", "--secret", "plain"), "--secret plain: write NAME/KEY"),
        (("--claim", "a", "--artifacts", "here"), "--artifacts here: where the claim is mounted"),
        (
            ("--claim", "a", "--artifacts", "memory://b"),
            "--claim a goes with a folder: --artifacts memory://b needs",
        ),
        (("--claim", "a", "--workers", "0"), "--workers"),
    ],
)
def test_what_no_manifest_can_be_made_of(call: Call, options: tuple[str, ...], message: str) -> None:
    """One line, exit code 2, nothing on stdout."""
    done = call("launch", "kubernetes", "--name", "digits", "--image", "x", *options)
    assert (done.code, done.out) == (2, "")
    assert message in done.err
    assert len(done.err.strip().splitlines()) == 1


def test_engine_none_starts_no_worker_and_ends_with_the_work(tmp_path: Path) -> None:
    """It plans and waits; a worker that joins does everything, and the command ends with its report."""
    command = [sys.executable, "-m", "study"]
    small = ["--data", "digits", "--trials", "1", "--budget", "1", "--device", "cpu"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [*command, "search", *small, "--engine", "none"],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    ) as planner:
        assert planner.stdout is not None
        wait_for(lambda: "0 running, 1 waiting" in planner.stdout.readline())  # type: ignore[union-attr]
        assert planner.poll() is None
        done = subprocess.run(
            [*command, "worker", "--name", "digits", "--device", "cpu"],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.strip() == "1 trials finished."
        planner.communicate(timeout=60)
    assert planner.returncode == 0
    assert (tmp_path / "reports" / "digits.html").exists()


@pytest.fixture
def slurm() -> Iterator[dict[str, str]]:
    if not is_possible():
        pytest.skip("needs root, slurmctld, slurmd and munged")
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))  # sockets need a short path
    folder.chmod(0o755)
    with slurm_cluster(folder) as environment:
        yield environment
    shutil.rmtree(folder)


def job_states(environment: dict[str, str], job: str) -> list[str]:
    """JobState and ExitCode of each task of an array, which Slurm keeps for five minutes."""
    done = subprocess.run(
        ["scontrol", "show", "job", job], env=environment, capture_output=True, text=True, check=False
    )
    words = done.stdout.split()
    states = [word.partition("=")[2] for word in words if word.startswith("JobState=")]
    codes = [word.partition("=")[2] for word in words if word.startswith("ExitCode=")]
    return sorted(f"{state} {code}" for state, code in zip(states, codes, strict=True))


@pytest.mark.faults
def test_a_real_slurm_runs_an_experiment_and_ends_workers_at_their_limit(
    slurm: dict[str, str], postgresql_url: str, tmp_path: Path
) -> None:
    """Two tasks of an array run a search to its end; a trial longer than the time limit is saved at Slurm's signal,
    its worker ends with code 0, and the next job's goes on with that state."""
    values = {"data": "digits", "name": "long", "search": {"trials": 1}, "budget": 100_000.0}
    artifacts = tmp_path / "artifacts"
    here = Place(postgresql_url, Local(artifacts), None, "cpu", 1)
    environment = slurm | {"PYTHONPATH": str(ROOT), STORAGE_VARIABLE: postgresql_url}

    def submit(name: str, *options: str) -> str:
        command = [sys.executable, "-m", "study", "launch", "slurm", "--name", name, "--device", "cpu"]
        done = subprocess.run(
            [*command, "--artifacts", str(artifacts), *options],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.split()[1].rstrip(":")

    short = {"data": "digits", "name": "short", "search": {"trials": 4}, "budget": 1.0}
    with (
        Session.prepare(here, Request(short, source="test")).store as store,
        Session.prepare(here, Request(values, source="test")).store,
    ):
        job = submit("short", "--workers", "2", "--time", "10")
        wait_for(lambda: job_states(slurm, job) == ["COMPLETED 0:0"] * 2, 120)
        trials = records.trials(store, "short")
        assert list(trials["state"]) == ["COMPLETE"] * 4

        for attempt in (1, 2):
            job = submit("long", "--workers", "1", "--time", "1")
            wait_for(lambda job=job: job_states(slurm, job) == ["COMPLETED 0:0"], 200)  # type: ignore[misc]
            trials = records.trials(store, "long")
            assert list(trials["state"]) == ["WAITING"]
            assert list(trials["attempt"]) == [attempt]
            assert list(trials["died"]) == [0]
            (state,) = artifacts.rglob("trial-0.pt")
            rows = records.curves(store, "long")
            assert list(rows["number"]) == list(range(len(rows)))
        output = "".join(path.read_text() for path in tmp_path.glob("slurm-long-*.out"))
        assert output.count("0 trials finished.") == 2
        assert state.stat().st_size > 0
