"""Weights & Biases: a run a trial, as its own environment variables say where (WANDB_PROJECT, WANDB_MODE, ...)."""

from __future__ import annotations

import os
import shutil
from glob import escape
from pathlib import Path

import wandb

from study.store.names import require_name
from study.tracking.runs import TrackedRun

_PROJECT = "vae-study"


class Wandb:
    """Steps are examples; the experiment is the runs' group, arm and phase are tags.

    A run's id is its key, and the keys of whole runs are noted in a file beside the runs: what was synchronised is
    not asked for over the network."""

    def __init__(self, experiment: str, folder: Path | None = None) -> None:
        self._experiment = require_name(experiment, "--name")
        self._root = folder or Path(os.environ.get("WANDB_DIR", "."))
        self._project = os.environ.get("WANDB_PROJECT", _PROJECT)
        # Its metadata, statistics and console are this process's, not the trial's.
        self._settings = wandb.Settings(
            silent=True, console="off", disable_git=True, x_disable_stats=True, x_disable_meta=True
        )

    @property
    def place(self) -> str:
        """For a message."""
        return f"{self._root / 'wandb'}, project {self._project}"

    @property
    def _notes(self) -> Path:
        return self._root / "wandb" / f"{self._experiment}.vae-study"

    def known(self) -> set[str]:
        """The noted keys."""
        return set(self._notes.read_text(encoding="utf-8").split()) if self._notes.exists() else set()

    def write(self, run: TrackedRun) -> None:
        """Noted once all of it is there; the server drops steps that it has already."""
        for half in (self._root / "wandb").glob(f"offline-run-*-{escape(run.key)}"):
            shutil.rmtree(half)
        with wandb.init(
            project=self._project,
            group=self._experiment,
            name=run.name,
            id=run.key,
            dir=str(self._root),
            tags=[
                f"{tag}:{run.tags[tag]}"[:64] for tag in ("arm", "phase", "block", "seed") if tag in run.tags
            ],
            config={**run.params, **run.tags},
            resume="allow" if os.environ.get("WANDB_MODE") != "offline" else None,
            reinit="create_new",
            settings=self._settings,
        ) as written:
            for point in run.curve:
                written.log(dict(point.metrics), step=point.examples)
            written.summary.update({f"result/{key}": value for key, value in run.results.items()})
            if run.failed:
                written.finish(exit_code=1)
        with self._notes.open("a", encoding="utf-8") as notes:
            notes.write(f"{run.key}\n")
