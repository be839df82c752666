"""The command line: the only place that parses, prints and chooses exit codes."""

from __future__ import annotations

from typing import NoReturn

from study.cli import analyse, doctor, gate, launch, log, read, replay, train
from vae.command import command_line
from vae.command import run as run_app

app = command_line(
    "vae-study", "Which training techniques make a VAE train faster, by how much, and how sure is that?"
)
for command in (
    train.run,
    train.search,
    train.compare,
    train.worker,
    analyse.analyse,
    gate.gate,
    read.show,
    read.export,
    read.report,
    read.dashboard,
    read.techniques,
    replay.replay,
    doctor.doctor,
    log.log,
):
    app.command()(command)
app.add_typer(launch.launch)


def run() -> NoReturn:
    """Run the command line (see `vae.command.run`)."""
    run_app(app)
