"""A Ray cluster of several nodes on this machine, in a process of its own: prints its address, and ends with its stdin.

A line "head" on stdin kills every process of the head with SIGKILL."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager


class RayCluster:
    """The cluster, seen from a test."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        self._process = process
        self.address = next(line for line in process.stdout if line.startswith("address ")).split()[1]

    def kill_head(self) -> None:
        """SIGKILL to all processes of the head node."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("head\n")
        self._process.stdin.flush()
        assert self._process.stdout.readline() == "killed\n"


@contextmanager
def ray_cluster(n_nodes: int, **variables: str) -> Iterator[RayCluster]:
    """A head without CPUs and so many nodes of one CPU each, with these environment variables."""
    settings = {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
        "RAY_worker_niceness": "0",
    }
    environment = os.environ | settings | variables
    process = subprocess.Popen(
        [sys.executable, __file__, str(n_nodes)],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    with process:
        try:
            yield RayCluster(process)
        finally:
            assert process.stdin is not None
            process.stdin.close()
            process.wait(timeout=60)


def main(n_nodes: int) -> None:
    from ray.cluster_utils import Cluster  # type: ignore[import-not-found, unused-ignore]

    small = {"object_store_memory": 80_000_000, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **small})
    nodes = [cluster.add_node(num_cpus=1, **small) for _ in range(n_nodes)]
    # Who is killed must be gone, as under init: actors take a node manager that is a zombie for alive.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    print("address", cluster.address, flush=True)
    for _ in sys.stdin:
        _kill(cluster.head_node)
        print("killed", flush=True)
    # Not `cluster.shutdown()`, which asks a head that may be gone.
    for node in [cluster.head_node, *nodes]:
        _kill(node)
    os._exit(0)


def _kill(node: object) -> None:
    for processes in node.all_processes.values():  # type: ignore[attr-defined]
        for info in processes:
            if info.process.poll() is None:
                os.kill(info.process.pid, signal.SIGKILL)


if __name__ == "__main__":
    main(int(sys.argv[1]))
