"""A Slurm of one node on this machine: Debian's munged, slurmctld and slurmd with files of their own, no root service.

Needs to be root, as slurmd does to run jobs of any user."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch")

_CONFIG = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
SlurmctldPort={controller_port}
SlurmdPort={node_port}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
ReturnToService=2
SchedulerType=sched/backfill
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
KillWait=30
OverTimeLimit=0
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


def is_possible() -> bool:
    """Whether Slurm is installed here and may be started."""
    os.environ["PATH"] += os.pathsep + "/usr/sbin"  # Debian's place for daemons, not on every PATH
    return os.geteuid() == 0 and all(shutil.which(program) for program in PROGRAMS)


@contextmanager
def slurm_cluster(folder: Path) -> Iterator[dict[str, str]]:
    """The environment in which `sbatch` and the like talk to it; needs a short path, for its sockets."""
    for name in ("state", "spool"):
        (folder / name).mkdir()
    host = socket.gethostname().partition(".")[0]
    config = folder / "slurm.conf"
    ports = {"controller_port": _free_port(), "node_port": _free_port()}
    config.write_text(_CONFIG.format(folder=folder, host=host, cpus=os.cpu_count(), **ports))
    (folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
    key = folder / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o400)
    environment = os.environ | {"SLURM_CONF": str(config)}
    munge = ["munged", "--foreground", "--force", f"--key-file={key}", f"--socket={folder}/munge.socket"]
    munge += [f"--pid-file={folder}/munged.pid", f"--log-file={folder}/munged.log", "--num-threads=2"]
    munge += [f"--seed-file={folder}/munge.seed"]
    started: list[subprocess.Popen[bytes]] = []
    try:
        for command in (munge, ["slurmctld", "-D", "-f", str(config)], ["slurmd", "-D", "-f", str(config)]):
            with (folder / f"{command[0]}.out").open("wb") as output:
                started.append(
                    subprocess.Popen(
                        command, env=environment, stdout=output, stderr=output, start_new_session=True
                    )
                )
            if command is munge:
                _until(lambda: (folder / "munge.socket").exists(), folder)
        _until(lambda: "idle" in _run(environment, "sinfo", "--noheader", "--format=%t"), folder)
        yield environment
    finally:
        _run(environment, "scancel", "--state=RUNNING,PENDING", "--user=root")
        for process in reversed(started):
            process.terminate()
        for process in started:
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _run(environment: dict[str, str], *command: str) -> str:
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    return done.stdout


def _until(condition: object, folder: Path) -> None:
    assert callable(condition)
    deadline = time.monotonic() + 60
    while not condition():
        logs = "\n".join(f"{log}: {log.read_text()[-2000:]}" for log in folder.glob("*.[lo][ou][gt]"))
        assert time.monotonic() < deadline, logs
        time.sleep(0.2)


def _free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])
