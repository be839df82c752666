"""TensorBoard: a folder of event files a run, under runs/EXPERIMENT."""

from __future__ import annotations

import os
import secrets
import shutil
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from study.store.names import require_name
from study.tracking.runs import TrackedRun

ROOT = Path("runs")


class TensorBoard:
    """Steps are examples; the hyperparameters' page has the recipe and the tags."""

    def __init__(self, experiment: str, root: Path = ROOT) -> None:
        self.folder = root / require_name(experiment, "--name")

    @property
    def place(self) -> str:
        """For a message."""
        return f"{self.folder}: tensorboard --logdir {self.folder.parent}"

    def known(self) -> set[str]:
        """Of the folders that have their name: it is given to a whole one."""
        return {path.name.rpartition("-")[2] for path in self.folder.glob("[!.]*-*")}

    def write(self, run: TrackedRun) -> None:
        """All or nothing: written beside its place, and moved there."""
        for half in self.folder.glob(f".{run.key}-*"):
            shutil.rmtree(half)
        unfinished = self.folder / f".{run.key}-{secrets.token_hex(4)}"
        writer = SummaryWriter(str(unfinished))
        for point in run.curve:
            for metric, value in point.metrics.items():
                writer.add_scalar(metric, value, point.examples, walltime=point.time)
        values = {f"result/{key}": value for key, value in run.results.items()}
        for key, value in values.items():
            writer.add_scalar(key, value, walltime=run.finished)
        told = {key: value for key, value in {**run.params, **run.tags}.items() if value is not None}
        # `add_hparams` would make a run of its own for them.
        file_writer = writer._get_file_writer()  # type: ignore[no-untyped-call]
        for summary in hparams(told, values):  # type: ignore[no-untyped-call]
            file_writer.add_summary(summary)
        writer.close()
        # The arm's name comes from a database, which may be anybody's.
        os.replace(unfinished, self.folder / require_name(f"{run.name}-{run.key}", "a trial's name"))
