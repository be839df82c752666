"""Workers on a Ray cluster: an actor a worker, which runs the same `study worker` as a process of its node.

The actor holds the place (CPUs, a part of a GPU) and is the process's parent: where it is killed, its node is lost or
the launcher ends, the process notices, puts its trial back and ends, as any worker does without its launcher.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from study.store.database import Database
from study.workers.engine import REFUSED, EngineLost, Handle
from vae.errors import UserError

#: Seconds without an answer of the cluster's head after which it is given up; Ray itself ends a program after 60.
LOST_AFTER = 20.0

_PROBE = 2.0

#: An actor whose owner or node manager ends would kill its children before it ends itself, in the middle of a trial.
_LET_LIVE = {"RAY_kill_child_processes_on_worker_exit": "0"}


class RayEngine:
    """A Ray cluster that this process is connected to."""

    def __init__(
        self,
        ray: Any,
        head: str,
        url: str,
        threads: int,
        gpus_per_worker: float,
        program: Sequence[str] | None = None,
    ) -> None:
        self._ray = ray
        self._head = head
        self._url = url
        self._threads = threads
        self._gpus = gpus_per_worker
        self._program = program
        self._actor = ray.remote(_actor_class())
        self._answered = self._probed = time.monotonic()

    @classmethod
    def connect(
        cls,
        database: Database,
        *,
        address: str | None = None,
        threads: int,
        gpus_per_worker: float = 0,
        program: Sequence[str] | None = None,
    ) -> RayEngine:
        """The cluster at `address`, by default the one that this machine is in. Each worker gets `threads` CPUs
        and runs `program`, by default this program's `worker`.

        Raises UserError where Ray isn't installed, there is no cluster, no node has room for one worker, or nodes of
        other machines can't reach the database."""
        # Ray prints the log of a node that died, pages of it, in between what this command says.
        os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", "^")
        try:
            import ray
        except ImportError:
            raise UserError("--engine ray needs Ray: pip install 'vae-study[ray]'.") from None
        head = address or os.environ.get("RAY_ADDRESS") or "auto"
        where = "on this machine" if head == "auto" else f"at {head}"
        if "://" in head:
            raise UserError(
                f"--ray-address {head}: give the head's HOST:PORT, and start this command on a machine of the cluster."
            )
        try:
            if head != "auto":
                _knock(head, seconds=5)  # Ray asks for two minutes
            ray.init(address=head, log_to_driver=False, logging_level=logging.ERROR, configure_logging=False)
        except (OSError, ValueError, RuntimeError) as error:
            raise UserError(
                f"No Ray cluster {where} ({_last_line(error)}). Start one with `ray start --head`, and on the other "
                "machines `ray start --address HEAD:6379`."
            ) from None
        url = database.url.render_as_string(hide_password=False)
        engine = cls(ray, ray.get_runtime_context().gcs_address, url, threads, gpus_per_worker, program)
        try:
            engine.require_fit(database)
        except UserError:
            ray.shutdown()
            raise
        return engine

    def room(self) -> int:
        """Workers that all nodes together have room for."""
        return sum(self._fits(node["Resources"]) for node in self._nodes())

    def start(self, arguments: Sequence[str]) -> Handle:
        """Ask the cluster for a place and start a worker there once there is one."""
        place = self._actor.options(
            num_cpus=self._threads,
            num_gpus=self._gpus,
            max_concurrency=3,
            runtime_env={"env_vars": _LET_LIVE},
        )
        root, folder = str(Path(__file__).resolve().parents[2]), str(Path.cwd())
        command = [list(arguments), self._url, self._threads, self._program and list(self._program)]
        return _RayWorker(self, self._ray, place.remote(root, version("vae-study"), folder, *command))

    def require_head(self) -> None:
        """Raises EngineLost where the head hasn't answered for LOST_AFTER seconds.

        Ray's own calls would wait, and end this program after a minute without a word of ours."""
        now = time.monotonic()
        if now - self._probed < _PROBE:
            return
        self._probed = now
        try:
            _knock(self._head, seconds=_PROBE)
            self._answered = now
        except OSError:
            if now - self._answered > LOST_AFTER:
                raise EngineLost(
                    f"The Ray head at {self._head} is gone. Finished trials are kept, running ones are put back by "
                    "their workers; run the same command again once there is a cluster."
                ) from None

    def _nodes(self) -> list[dict[str, Any]]:
        return [node for node in self._ray.nodes() if node["Alive"]]

    def _fits(self, resources: dict[str, float]) -> int:
        places = resources.get("CPU", 0) // self._threads
        if self._gpus:
            places = min(places, resources.get("GPU", 0) // self._gpus)
        return int(places)

    def require_fit(self, database: Database) -> None:
        """Raises UserError where no node has room for a worker, or some can't reach the database."""
        hosts = {node["NodeManagerHostname"] for node in self._nodes()} - {socket.gethostname()}
        if database.path is not None and hosts:
            raise UserError(
                f"--storage {database.name} is a file that {', '.join(sorted(hosts))} can't use: a Ray cluster of "
                "several machines needs PostgreSQL, --storage postgresql+psycopg://user@host/database."
            )
        if self.room() == 0:
            gpus = f" and {self._gpus:g} GPUs" if self._gpus else ""
            has = ", ".join(
                f"{node['NodeManagerHostname']} {node['Resources'].get('CPU', 0):g} CPUs and "
                f"{node['Resources'].get('GPU', 0):g} GPUs"
                for node in self._nodes()
            )
            raise UserError(
                f"No node of the Ray cluster has {self._threads} CPUs{gpus} for a worker ({has}): fewer "
                "--threads or --gpus-per-worker."
            )


class _RayWorker:
    """A worker on a Ray cluster: a Handle."""

    def __init__(self, engine: RayEngine, ray: Any, actor: Any) -> None:
        self._engine = engine
        self._ray = ray
        self._actor = actor
        self._started = actor.owner.remote()
        self._outcome = actor.outcome.remote()
        self._owner = ""
        self._code: int | None = None
        self._last_lines = "it wrote nothing"

    @property
    def owner(self) -> str:
        if not self._owner and self._is_there(self._started):
            try:
                self._owner = self._ray.get(self._started)
            except self._ray.exceptions.RayError:
                return ""
        return self._owner

    def ended(self) -> int | None:
        self._engine.require_head()
        if self._code is None and self._is_there(self._outcome):
            _ = self.owner  # which can't be asked of an actor that is gone
            try:
                self._code, self._last_lines = self._ray.get(self._outcome)
            except self._ray.exceptions.RayError as error:
                # Its node can't run it; or it was killed, by someone or with its node, which says nothing about the
                # next.
                self._code = REFUSED if "raised in its creation task" in str(error) else -signal.SIGKILL
                self._last_lines = _last_line(error)
        return self._code

    def stop(self) -> None:
        if self.owner:
            self._actor.stop.remote()
        else:
            self._ray.kill(self._actor)  # it still waits for its place

    def kill(self) -> None:
        if self.owner:
            self._ray.wait([self._actor.kill.remote()], timeout=5)
        self._ray.kill(self._actor)

    def last_lines(self) -> str:
        return self._last_lines

    def close(self) -> None:
        self._ray.kill(self._actor)

    def _is_there(self, reference: Any) -> bool:
        ready, _ = self._ray.wait([reference], timeout=0)
        return bool(ready)


def _actor_class() -> type:
    """The actor. Made here, so that Ray sends it by value: a node that has the program elsewhere can read it."""

    class StudyWorker:
        def __init__(
            self,
            root: str,
            release: str,
            folder: str,
            arguments: list[str],
            url: str,
            threads: int,
            program: list[str] | None,
        ) -> None:
            import sys

            # A shared folder has the very code that the launcher runs; other nodes have it installed.
            if os.path.isdir(os.path.join(root, "study")):
                sys.path.insert(0, root)
            from importlib.metadata import version

            from study.workers.processes import LocalEngine

            if version("vae-study") != release:
                node = socket.gethostname()
                raise RuntimeError(f"{node} has vae-study {version('vae-study')}, the launcher {release}")
            if os.path.isdir(folder):
                os.chdir(folder)
            self._worker = LocalEngine(url, threads, program).start(arguments)

        def owner(self) -> str:
            return self._worker.owner

        def outcome(self) -> tuple[int, str]:
            while (code := self._worker.ended()) is None:
                time.sleep(0.2)
            return code, self._worker.last_lines()

        def stop(self) -> None:
            self._worker.stop()

        def kill(self) -> None:
            self._worker.kill()

    return StudyWorker


def _knock(address: str, seconds: float) -> None:
    """Raises OSError where nobody answers at HOST:PORT, ValueError where it is none."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise ValueError("not HOST:PORT")
    socket.create_connection((host.strip("[]"), int(port)), timeout=seconds).close()


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:300].rstrip(".") if lines else type(error).__name__
