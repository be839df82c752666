"""Faults with real processes: kills, suspensions, full disks, races. Long versions: pytest -m faults."""

from __future__ import annotations

import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import optuna
import pytest
import sqlalchemy
from fake_study import (
    PROGRAM,
    Launcher,
    alive,
    check_complete,
    events,
    load,
    plan,
    row,
    run,
    scalar,
    take,
    wait_for,
)

from study.store import records
from study.store.claims import MAX_DEATHS
from study.store.owner import new_owner
from study.store.setup import setup_lock
from study.store.store import Store

LONG = (pytest.mark.faults, pytest.mark.timeout(1200))

#: Processes forked from one that has imported everything: many real ones, started in no time.
FORKED = multiprocessing.get_context("forkserver")
FORKED.set_forkserver_preload(["fake_study", "alembic.command", "optuna.storages._rdb.models", "psycopg"])


def start_worker(url: str, folder: Path, *arguments: str) -> ForkServerProcess:
    """A worker without a launcher."""
    options = ["worker", "--storage", url, "--name", "digits", "--folder", str(folder), *arguments]
    worker = FORKED.Process(target=run, args=(options,))
    worker.start()
    return worker


def end(workers: list[ForkServerProcess]) -> list[int | None]:
    """Wait for their end and return their exit codes."""
    for worker in workers:
        worker.join(60)
    return [worker.exitcode for worker in workers]


def test_sixty_trials_under_eight_workers_run_once(store: Store, tmp_path: Path) -> None:
    """Each enqueued trial is begun once, ended once, under one attempt, and no worker meets an error."""
    plan(store, "digits/search", 60)
    options = ("--rows", "8", "--delay", "0.002")
    workers = [start_worker(store.url, tmp_path, *options) for _ in range(8)]
    wait_for(lambda: records.remaining(store, "digits") == 0)
    for worker in workers:
        worker.terminate()
    assert end(workers) == [0] * 8
    check_complete(store, "digits", 60, 8)
    for kind in ("begin", "end"):
        assert sorted(int(number) for _, number, _ in events(tmp_path, kind)) == list(range(60))
    assert set(records.trials(store, "digits")["attempt"]) == {1}
    assert len({owner for owner, _, _ in events(tmp_path, "begin")}) > 1


@pytest.mark.parametrize("n_kills", [8, pytest.param(50, marks=LONG)])
def test_random_kills_lose_and_double_nothing(database_url: str, tmp_path: Path, n_kills: int) -> None:
    """Workers of a four-worker search are killed with -9 at random: every trial still finishes exactly once,
    with its whole curve, in order. (Never a third time at one place of a trial: it would be given up.)"""
    seed = random.SystemRandom().randrange(10**6)
    rng = random.Random(seed)
    n_trials = 5 * n_kills
    options = ("--trials", str(n_trials), "--workers", "4", "--rows", "20", "--delay", "0.02")
    began = time.monotonic()
    launcher = Launcher(database_url, tmp_path, *options)
    launcher.begun(1)
    killed: list[str] = []
    with Store.open(database_url) as store:
        while len(killed) < n_kills and records.remaining(store, "digits"):
            time.sleep(rng.uniform(0.05, 0.6))
            owners = sorted({owner for owner, _, _ in events(tmp_path, "begin")})
            living = [owner for owner in owners if alive(int(owner.split(":")[1]))]
            victim = rng.choice(living) if living else "nobody"
            died = scalar(
                store, f"SELECT max(died) FROM trial_run WHERE owner = '{victim}' AND outcome IS NULL"
            )
            if living and (died or 0) < MAX_DEATHS - 1:
                os.kill(int(victim.split(":")[1]), signal.SIGKILL)
                killed.append(victim)
        assert "done" in launcher.output(), f"seed {seed}"
        assert launcher.process.returncode == 0
        assert len(killed) == n_kills, f"the search was over before the last kill, seed {seed}"
        check_complete(store, "digits", n_trials, 20)
        frame = records.trials(store, "digits")
        ends = Counter(int(number) for _, number, _ in events(tmp_path, "end"))
        assert max(ends.values()) == 1
        # A worker killed between the result and its note leaves no note, but never two.
        assert n_trials - n_kills <= sum(ends.values()) <= n_trials
        attempts = Counter((number, attempt) for _, number, attempt in events(tmp_path, "begin"))
        assert set(attempts.values()) == {1}
        n_taken_over = int((frame["attempt"] > 1).sum())
        assert n_taken_over > 0
    print(
        f"{store.engine.dialect.name}: {n_kills} kills (seed {seed}) in {time.monotonic() - began:.0f} s,"
        f" {n_trials} trials each finished once, {n_taken_over} of them taken over,"
        f" most attempts {frame['attempt'].max()}, {n_trials * 20} curve rows, none missing or doubled"
    )


def create_on_request(pipe: Connection) -> None:
    """Open each database that is named and plan in it; answer with what waits there then."""
    warnings.simplefilter("error")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    for url in iter(pipe.recv, None):
        with Store.open(url, create=True) as store:
            with setup_lock(store):
                if not records.study_ids(store, "digits"):
                    plan(store, "digits/search", 3)
            pipe.send(records.remaining(store, "digits"))


@pytest.mark.parametrize("n_rounds", [3, pytest.param(20, marks=LONG)])
def test_eight_processes_on_an_empty_database(database_url: str, tmp_path: Path, n_rounds: int) -> None:
    """Eight launchers that start together on nothing create one database, plan once and meet no error."""
    pipes = [FORKED.Pipe() for _ in range(8)]
    processes = [FORKED.Process(target=create_on_request, args=(theirs,)) for _, theirs in pipes]
    for process, (_, theirs) in zip(processes, pipes, strict=True):
        process.start()
        theirs.close()
    for _ in range(n_rounds):
        for pipe, _ in pipes:
            pipe.send(database_url)
        assert [pipe.recv() for pipe, _ in pipes] == [3] * 8
        clear(database_url, tmp_path)
    for pipe, _ in pipes:
        pipe.send(None)
    assert end(processes) == [0] * 8


def clear(url: str, folder: Path) -> None:
    """Make the database as empty as it was."""
    if url.startswith("sqlite"):
        # Until all have closed it, the last one's log may lie beside the file.
        wait_for(lambda: [path.name for path in folder.iterdir()] == ["optuna.db"])
        (folder / "optuna.db").unlink()
        return
    engine = sqlalchemy.create_engine(url)
    with engine.begin() as connection:
        connection.execute(sqlalchemy.text("DROP SCHEMA public CASCADE"))
        connection.execute(sqlalchemy.text("CREATE SCHEMA public"))
    engine.dispose()


def test_two_launchers_share_the_work(database_url: str, tmp_path: Path) -> None:
    """The same command twice at once, on nothing: both end well and every trial runs once, by both."""
    options = ("--trials", "24", "--workers", "2", "--rows", "12", "--delay", "0.02")
    launchers = [Launcher(database_url, tmp_path, *options) for _ in range(2)]
    with ThreadPoolExecutor() as pool:
        outputs = list(pool.map(Launcher.output, launchers))
    assert ["done" in output for output in outputs] == [True, True]
    with Store.open(database_url) as store:
        check_complete(store, "digits", 24, 12)
    assert sorted(int(number) for _, number, _ in events(tmp_path, "end")) == list(range(24))
    assert len({owner for owner, _, _ in events(tmp_path, "begin")}) > 2


def test_a_suspended_worker_that_wakes_overwrites_nothing(store: Store, tmp_path: Path) -> None:
    """A worker stopped past its lease finds its trial taken over, drops it quietly and goes on."""
    plan(store, "digits/search", 2)
    options = ("--rows", "80", "--delay", "0.02", "--lease", "2.5")
    sleeper = start_worker(store.url, tmp_path, *options)
    wait_for(lambda: len(records.curves(store, "digits")) >= 8)
    os.kill(sleeper.pid or 0, signal.SIGSTOP)
    heir = start_worker(store.url, tmp_path, *options)
    wait_for(lambda: ["0", "2"] in [event[1:] for event in events(tmp_path, "begin")])
    os.kill(sleeper.pid or 0, signal.SIGCONT)
    wait_for(lambda: records.remaining(store, "digits") == 0)
    for worker in (sleeper, heir):
        worker.terminate()
    assert end([sleeper, heir]) == [0, 0]
    check_complete(store, "digits", 2, 80)
    ends = {number: (owner, attempt) for owner, number, attempt in events(tmp_path, "end")}
    assert len(ends) == len(events(tmp_path, "end")) == 2
    assert ends["0"][0].split(":")[1] == str(heir.pid)
    assert ends["0"][1] == "2"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 3 MB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, check=False, capture_output=True).returncode != 0:
        pytest.skip("mounting a small file system needs root and the right to mount")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_loses_nothing(small_disk: Path, tmp_path: Path) -> None:
    """The command says that the disk is full; with room again, the same command finishes everything."""
    url = f"sqlite:///{small_disk / 'optuna.db'}"
    options = ("--trials", "12", "--workers", "2", "--rows", "20", "--delay", "0.02")
    first = Launcher(url, tmp_path, *options)
    first.begun(3)
    filler = small_disk / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"x" * 4096)
        except OSError:
            pass  # full
    output = first.output()
    assert first.process.returncode == 1
    assert "done" not in output
    assert "disk is full. Free some space and run the same command again" in first.errors
    filler.unlink()
    with Store.open(url) as store:
        n_done = list(records.trials(store, "digits")["state"]).count("COMPLETE")
        assert n_done < 12
        second = Launcher(url, tmp_path, *options)
        assert "done" in second.output()
        check_complete(store, "digits", 12, 20)
    assert max(Counter(number for _, number, _ in events(tmp_path, "end")).values()) == 1


@pytest.mark.faults
def test_a_database_moved_aside_loses_nothing(sqlite_url: str, tmp_path: Path) -> None:
    """The file alone is moved in the middle of a run, its log stays: the command ends with one line, and so does one
    that is run meanwhile, without making a new file; with the file back, the same command finishes everything."""
    path, aside = tmp_path / "optuna.db", tmp_path / "aside.db"
    options = ("--trials", "12", "--workers", "2", "--rows", "20", "--delay", "0.02")
    first = Launcher(sqlite_url, tmp_path, *options)
    first.begun(4)
    path.rename(aside)
    output = first.output()
    assert first.process.returncode == 1
    assert "done" not in output
    assert "Bring the file back" in first.errors
    assert "Traceback" not in first.errors
    wait_for(lambda: not any(alive(pid) for pid in first.owners()), 60)
    meanwhile = Launcher(sqlite_url, tmp_path, *options)
    meanwhile.output()
    assert meanwhile.process.returncode == 1
    assert len(meanwhile.errors.strip().splitlines()) == 1
    assert "optuna.db is gone but optuna.db-wal is still there. Bring the file back" in meanwhile.errors
    assert not path.exists()
    aside.rename(path)
    ended = {int(number) for _, number, _ in events(tmp_path, "end")}
    with Store.open(sqlite_url) as store:
        trials = records.trials(store, "digits")
        assert ended <= set(trials[trials["state"] == "COMPLETE"]["number"])
        assert 0 < len(ended) < 12
        assert "done" in Launcher(sqlite_url, tmp_path, *options).output()
        check_complete(store, "digits", 12, 20)
    assert max(Counter(number for _, number, _ in events(tmp_path, "end")).values()) == 1


#: Put before the C library, it sets the clock of a process back an hour once there is a file called $SET_BACK.
_CLOCK = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>
static int back(void) { return access(getenv("SET_BACK"), F_OK) == 0 ? 3600 : 0; }
int clock_gettime(clockid_t clock, struct timespec *now) {
    int (*real)(clockid_t, struct timespec *) = dlsym(RTLD_NEXT, "clock_gettime");
    int answer = real(clock, now);
    if (clock == CLOCK_REALTIME) now->tv_sec -= back();
    return answer;
}
int gettimeofday(struct timeval *now, void *zone) {
    int (*real)(struct timeval *, void *) = dlsym(RTLD_NEXT, "gettimeofday");
    int answer = real(now, zone);
    now->tv_sec -= back();
    return answer;
}
"""


@pytest.mark.faults
def test_a_clock_set_back_an_hour_takes_no_trial_from_anyone(database_url: str, tmp_path: Path) -> None:
    """The clock of the workers goes back in the middle of their trials, a server's stays: every trial is run once, by
    who began it. One killed afterwards is taken over."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    library, back = tmp_path / "clock.so", tmp_path / "back"
    compile_it = [compiler, "-shared", "-fPIC", "-x", "c", "-", "-o", str(library), "-ldl"]
    subprocess.run(compile_it, input=_CLOCK, text=True, check=True)
    options = ["worker", "--storage", database_url, "--name", "digits", "--folder", str(tmp_path)]
    command = [*PROGRAM, *options, "--rows", "40", "--delay", "0.05"]
    environment = os.environ | {"LD_PRELOAD": str(library), "SET_BACK": str(back)}
    (tmp_path / "events").touch()

    def holds(worker: subprocess.Popen[bytes]) -> bool:
        begun, ended = (
            [e for e in events(tmp_path, kind) if f":{worker.pid}:" in e[0]] for kind in ("begin", "end")
        )
        return len(begun) > len(ended)

    with Store.open(database_url, create=True) as store, ExitStack() as stack:
        plan(store, "digits/search", 16)
        workers = [subprocess.Popen(command, env=environment) for _ in range(2)]
        for worker in workers:
            stack.enter_context(worker)
            stack.callback(worker.kill)
        wait_for(lambda: all(map(holds, workers)), 120)
        back.touch()
        wait_for(lambda: len(events(tmp_path, "end")) >= 4, 120)
        victim, heir = workers
        wait_for(lambda: holds(victim))
        victim.kill()
        wait_for(lambda: records.remaining(store, "digits") == 0, 120)
        heir.terminate()
        assert heir.wait(60) == 0
        check_complete(store, "digits", 16, 40)
        assert sum(records.trials(store, "digits")["attempt"] - 1) == 1
    assert max(Counter(number for _, number, _ in events(tmp_path, "end")).values()) == 1


def test_a_full_disk_leaves_no_half_made_database(small_disk: Path) -> None:
    """Where there is no room for a new database, none is left, and none of the room is taken."""
    (small_disk / "filler").write_bytes(b"x" * (3 * 2**20 - 64 * 1024))
    launcher = Launcher(f"sqlite:///{small_disk / 'optuna.db'}", small_disk, "--trials", "1")
    launcher.output()
    assert "disk is full" in launcher.errors
    assert [path.name for path in small_disk.iterdir()] == ["filler"]


def test_lost_connections_are_made_anew(prepared_postgresql_url: str) -> None:
    """Connections that the server ended (a restart, an idle timeout) are replaced unnoticed."""
    with Store.open(prepared_postgresql_url) as store:
        plan(store, "digits/a", 1)
        claim = take(store, new_owner())
        engine = sqlalchemy.create_engine(prepared_postgresql_url)
        with engine.begin() as connection:
            others = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
            connection.execute(sqlalchemy.text(f"{others} AND datname = current_database()"))
        engine.dispose()
        claim.record([row(0)])
        assert load(store)("digits/a").trials[0].number == 0
