"""An experiment's data as each block splits it."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from study.design.experiment import Experiment
from vae.data.dataset import Dataset, load
from vae.errors import FailureError, UserError

#: Splits that are held in memory beside the first block's.
KEPT = 2


class Splits:
    """The data of an experiment, block by block; `first` is the first block's."""

    def __init__(self, experiment: Experiment, first: Dataset, data_dir: Path | None) -> None:
        self.first = first
        self._experiment = experiment
        self._data_dir = data_dir
        self._drawn = lru_cache(KEPT)(self._draw)

    def of(self, block: int) -> Dataset:
        """The data as a block splits it. Raises FailureError where it is not there any more or has changed."""
        block = self._experiment.split_block(block)
        return self.first if block == 1 else self._drawn(block)

    def _draw(self, block: int) -> Dataset:
        experiment = self._experiment
        try:
            data = load(
                experiment.data,
                seed=experiment.split_seed(block),
                likelihood=experiment.recipe.likelihood,
                data_dir=self._data_dir,
            )
        except UserError as error:  # it was there a moment ago: no fault of the trial
            raise FailureError(str(error)) from None
        if data.content != self.first.content:
            raise FailureError(
                f"{experiment.data} has changed since this worker began with it: bring back what it was, and run again."
            )
        return data
