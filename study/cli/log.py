"""The command that writes an experiment's finished trials to a tracker."""

from __future__ import annotations

import threading
from typing import Annotated

import typer

from study.cli.options import DEFAULT_STORAGE, OneName, Storage
from study.cli.terminal import out, plural, quiet
from vae.command import grouped


@grouped
def log(
    tracker: Annotated[str, typer.Argument(help="mlflow, tensorboard or wandb.")],
    name: OneName = None,
    storage: Storage = DEFAULT_STORAGE,
    go_on: Annotated[
        bool, typer.Option("--follow", help="Go on with trials that end later, until stopped.")
    ] = False,
) -> None:
    """Write each finished trial to a tracker as one run; again writes what is new."""
    from study.workers.signals import stop_on_signals

    stop = stop_on_signals() if go_on else threading.Event()
    quiet()
    from study.store.store import Store
    from study.tracking.follow import follow, open_tracker, require_kinds, write_new

    (kind,) = require_kinds([tracker], "log")
    with Store.open(storage, read_only=True) as store:
        name = store.pick_name(name)
        opened = open_tracker(kind, name)
        written = follow(store, name, opened, kind, stop) if go_on else write_new(store, name, opened, kind)
        out.print(f"{plural(written, 'run')} written to {opened.place}", soft_wrap=True)
