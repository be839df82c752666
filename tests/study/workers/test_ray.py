"""Workers on a real Ray cluster of several nodes, and what is refused before one is used."""

from __future__ import annotations

import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import Call
from fake_study import Launcher, alive, check_complete, events, wait_for
from ray_cluster import RayCluster, ray_cluster

from study.store import records
from study.store.database import Database
from study.store.store import Store
from study.workers.processes import this_program
from study.workers.ray import RayEngine, _actor_class
from vae.errors import UserError

FILE = Database.parse("sqlite:///optuna.db")
SERVER = Database.parse("postgresql+psycopg://me:secret@db/x")


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    with ray_cluster(2) as running:
        yield running


def on_ray(url: str, folder: Path, cluster: RayCluster, *arguments: str) -> Launcher:
    return Launcher(url, folder, "--workers", "2", "--ray", cluster.address, *arguments)


def actors_of(launcher: Launcher) -> dict[int, int]:
    """The processes of the workers, each with its actor's, which started it and lives on a node that does."""
    found = {}
    for pid in set(launcher.owners()):
        with suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
            actor = parent(pid)
            if alive(pid) and "StudyWorker" in command(actor) and "raylet" in command(parent(actor)):
                found[pid] = actor
    return found


def parent(pid: int) -> int:
    """The process that started it; an actor's is the manager of its node."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def command(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text()


def test_a_killed_ray_worker_is_replaced_and_everything_is_run(
    cluster: RayCluster, sqlite_url: str, tmp_path: Path
) -> None:
    """Two nodes run a worker each; one's actor is killed with SIGKILL: its worker puts its trial back, another takes
    its place, and each trial ends once with its whole curve."""
    launcher = on_ray(sqlite_url, tmp_path, cluster, "--trials", "8", "--rows", "40", "--delay", "0.05")
    launcher.begun(2)
    os.kill(next(iter(actors_of(launcher).values())), signal.SIGKILL)
    assert "done" in launcher.output(), launcher.errors
    with Store.open(sqlite_url) as store:
        check_complete(store, "digits", 8, 40)
        assert set(records.trials(store, "digits")["died"]) == {0}
    assert len(events(tmp_path, "release")) == 1
    assert len(set(launcher.owners())) == 3


@pytest.mark.faults
def test_ctrl_c_stops_the_workers_on_the_cluster(
    cluster: RayCluster, sqlite_url: str, tmp_path: Path
) -> None:
    """They put their trials back and are gone when the command ends; run again, all is finished."""
    arguments = ("--trials", "6", "--rows", "40", "--delay", "0.05")
    first = on_ray(sqlite_url, tmp_path, cluster, *arguments)
    first.begun(2)
    first.process.send_signal(signal.SIGINT)
    assert "stopped; run the same command to go on" in first.output()
    assert not any(alive(pid) for pid in first.owners())
    with Store.open(sqlite_url) as store:
        assert set(records.trials(store, "digits")["state"]) <= {"COMPLETE", "WAITING"}
        assert "done" in on_ray(sqlite_url, tmp_path, cluster, *arguments).output()
        check_complete(store, "digits", 6, 40)


@pytest.mark.faults
def test_a_killed_launcher_leaves_no_worker_on_the_cluster(
    cluster: RayCluster, sqlite_url: str, tmp_path: Path
) -> None:
    """Its actors end with it, without their workers, which put their trials back; run again, all is finished."""
    arguments = ("--trials", "4", "--rows", "40", "--delay", "0.05")
    first = on_ray(sqlite_url, tmp_path, cluster, *arguments)
    first.begun(2)
    first.process.kill()
    first.output()
    wait_for(lambda: not any(alive(pid) for pid in first.owners()), 60)
    assert sorted(events(tmp_path, "begin")) == sorted(events(tmp_path, "end") + events(tmp_path, "release"))
    assert "done" in on_ray(sqlite_url, tmp_path, cluster, *arguments).output()
    with Store.open(sqlite_url) as store:
        check_complete(store, "digits", 4, 40)
        assert set(records.trials(store, "digits")["died"]) == {0}


@pytest.mark.faults
def test_a_lost_node_is_done_without(sqlite_url: str, tmp_path: Path) -> None:
    """Its node manager is killed, and with it its actor: the worker puts its trial back, the other node runs
    everything, and nothing of Ray's log is printed."""
    with ray_cluster(2) as cluster, Store.open(sqlite_url, create=True) as store:
        launcher = on_ray(sqlite_url, tmp_path, cluster, "--trials", "4", "--rows", "400", "--delay", "0.05")
        launcher.begun(2)
        os.kill(parent(next(iter(actors_of(launcher).values()))), signal.SIGKILL)
        assert launcher.output() == "planned\ndone\n"
        assert launcher.errors == ""
        check_complete(store, "digits", 4, 400)
        assert len(events(tmp_path, "release")) == 1
        wait_for(lambda: not any(alive(pid) for pid in launcher.owners()), 60)


@pytest.mark.faults
@pytest.mark.timeout(1200)
def test_random_kills_on_ray_lose_and_double_nothing(sqlite_url: str, tmp_path: Path) -> None:
    """Workers, actors, node managers and the launcher itself are killed with SIGKILL at random, and the command is run
    again where it ended: every trial ends once, with its whole curve."""
    seed = random.SystemRandom().randrange(10**6)
    rng = random.Random(seed)
    kinds = ["worker"] * 4 + ["actor"] * 4 + ["launcher"] * 2 + ["node"] * 2
    rng.shuffle(kinds)
    arguments = ("--trials", "60", "--rows", "100", "--delay", "0.05")
    with ray_cluster(4) as cluster, Store.open(sqlite_url, create=True) as store:
        launcher = on_ray(sqlite_url, tmp_path, cluster, *arguments)
        launcher.begun(1)
        for kind in kinds:
            time.sleep(rng.uniform(0, 3))
            wait_for(lambda: actors_of(launcher) != {}, 120)  # noqa: B023
            assert launcher.process.poll() is None, f"over before the last kill, seed {seed}"
            if kind == "launcher":
                launcher.process.kill()
                launcher.output()
                launcher = on_ray(sqlite_url, tmp_path, cluster, *arguments)
            else:
                worker, actor = rng.choice(list(actors_of(launcher).items()))
                os.kill({"worker": worker, "actor": actor, "node": parent(actor)}[kind], signal.SIGKILL)
        assert launcher.output() == "planned\ndone\n", f"seed {seed}: {launcher.errors}"
        check_complete(store, "digits", 60, 100)
        trials = records.trials(store, "digits")
    ends = [number for _, number, _ in events(tmp_path, "end")]
    assert len(ends) == len(set(ends)), f"seed {seed}"
    print(
        f"12 kills (seed {seed}): 60 trials ended once, {(trials['attempt'] > 1).sum()} of them taken again"
    )


@pytest.mark.faults
def test_a_killed_head_ends_the_command_with_a_line_and_no_trial_is_lost(
    sqlite_url: str, tmp_path: Path
) -> None:
    """Exit code 1, no traceback; the workers end; on a new cluster the same command finishes everything."""
    arguments = ("--trials", "6", "--rows", "400", "--delay", "0.05")
    with ray_cluster(2) as first:
        launcher = on_ray(sqlite_url, tmp_path, first, *arguments)
        launcher.begun(2)
        first.kill_head()
        launcher.output()
    assert launcher.process.returncode == 1
    assert f"The Ray head at {first.address} is gone" in launcher.errors
    assert "Traceback" not in launcher.errors
    wait_for(lambda: not any(alive(pid) for pid in launcher.owners()), 60)
    with ray_cluster(2) as second, Store.open(sqlite_url) as store:
        assert "done" in on_ray(sqlite_url, tmp_path, second, *arguments).output()
        check_complete(store, "digits", 6, 400)
        assert set(records.trials(store, "digits")["died"]) == {0}


@pytest.mark.faults
def test_a_node_with_other_data_is_refused(sqlite_url: str, tmp_path: Path) -> None:
    """The path leads to another file there: the command ends as on bad input, with one line that names the node, and
    no trial was taken."""
    for place, seed in (("here", 0), ("there", 1)):
        (tmp_path / place).mkdir()
        np.save(
            tmp_path / place / "pixels.npy", np.random.default_rng(seed).random((80, 2, 2), dtype=np.float32)
        )
    with ray_cluster(1, HOME=str(tmp_path / "there")) as cluster:
        options = [
            "--engine",
            "ray",
            "--ray-address",
            cluster.address,
            "--data",
            "~/pixels.npy",
            "--name",
            "px",
        ]
        options += ["--storage", sqlite_url, "--arms", "dropout", "--set", "batch_size=8"]
        environment = os.environ | {"HOME": str(tmp_path / "here")}
        program = this_program("compare", *options)
        done = subprocess.run(
            program, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
    assert done.returncode == 2
    assert re.fullmatch(
        rf"Error: A worker on {socket.gethostname()} can't take part: Experiment 'px' was begun with data of SHA-256 "
        r"\w{12}\.\.\., not \w{12}\.\.\. \(pixels\): bring the same file and seed, .*\n",
        done.stderr,
    )
    with Store.open(sqlite_url) as store:
        trials = records.trials(store, "px")
        assert set(trials["state"]) == {"WAITING"}
        assert trials["attempt"].isna().all()


def test_a_node_with_another_release_is_refused() -> None:
    """Both releases and the node are named, before anything is started there."""
    with pytest.raises(RuntimeError, match=rf"{socket.gethostname()} has vae-study .*, the launcher 0\.0$"):
        _actor_class()("/nowhere", "0.0", "/nowhere", [], "", 1, None)


class Nodes:
    """Ray as far as a cluster's nodes are asked for: (host, CPUs, GPUs) of each."""

    def __init__(self, *nodes: tuple[str, float, float]) -> None:
        self._nodes = nodes

    def nodes(self) -> list[dict[str, Any]]:
        return [
            {"Alive": True, "NodeManagerHostname": host, "Resources": {"CPU": cpus, "GPU": gpus}}
            for host, cpus, gpus in self._nodes
        ] + [{"Alive": False, "NodeManagerHostname": "gone", "Resources": {"CPU": 64.0}}]

    def remote(self, actor: type) -> type:
        return actor


def engine(nodes: Nodes, threads: int = 1, gpus: float = 0) -> RayEngine:
    return RayEngine(nodes, "head:1", "", threads, gpus)


@pytest.mark.parametrize(
    ("threads", "gpus", "room"), [(1, 0, 12), (2, 0, 5), (1, 0.25, 8), (1, 1, 2), (3, 0.25, 2), (9, 0, 0)]
)
def test_as_many_workers_as_nodes_have_room_for(threads: int, gpus: float, room: int) -> None:
    """A worker's CPUs and its part of a GPU are on one node: parts of several are no place."""
    nodes = Nodes(("a", 8.0, 2.0), ("b", 3.0, 0.0), ("c", 1.0, 0.0))
    assert engine(nodes, threads, gpus).room() == room


def test_what_a_cluster_cannot_run_is_refused() -> None:
    """A worker larger than every node, and a file as the database of several machines, each with the way out."""
    nodes = Nodes(("a", 2.0, 0.0), ("b", 1.0, 0.0))
    with pytest.raises(
        UserError, match=r"No node .* 1 CPUs and 0.5 GPUs .*a 2 CPUs and 0 GPUs.*fewer --threads"
    ):
        engine(nodes, gpus=0.5).require_fit(SERVER)
    with pytest.raises(UserError, match=r"optuna.db is a file that a, b can't use.*needs PostgreSQL"):
        engine(nodes).require_fit(FILE)
    engine(nodes).require_fit(SERVER)
    engine(Nodes((os.uname().nodename, 2.0, 0.0))).require_fit(FILE)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--engine", "slurm"), "--engine slurm: local, ray or none"),
        (("--engine", "none", "--workers", "2"), "--workers goes with --engine local or ray"),
        (("--engine", "none", "--aa", "2"), "--aa runs in processes of this machine"),
        (("--ray-address", "a:1"), "--ray-address goes with --engine ray"),
        (("--gpus-per-worker", "0.5"), "--gpus-per-worker goes with --engine ray"),
        (("--engine", "ray", "--ray-address", "ray://a:1"), "give the head's HOST:PORT"),
        (("--engine", "ray", "--ray-address", "127.0.0.1:1"), "No Ray cluster at 127.0.0.1:1"),
        (("--engine", "ray", "--ray-address", "here"), "No Ray cluster at here (not HOST:PORT)"),
        (("--engine", "ray", "--aa", "2"), "--aa runs in processes of this machine"),
    ],
)
def test_wrong_engines_are_refused_in_a_line(call: Call, options: tuple[str, ...], message: str) -> None:
    """Exit code 2, nothing written, no connection made where none was asked for."""
    done = call("compare", *options)
    assert done.code == 2
    assert message in done.err
    assert len(done.err.strip().splitlines()) == 1
    assert not Path("optuna.db").exists()


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """One line and the way out."""
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"pip install 'vae-study\[ray\]'"):
        RayEngine.connect(FILE, threads=1)
