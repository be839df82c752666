"""MLflow: a run a trial in the experiment of the same name, on MLFLOW_TRACKING_URI or in mlflow.db."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from typing import TypeVar

from sqlalchemy.exc import SADeprecationWarning

from study.store.url import shown
from study.tracking.runs import TrackedRun

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of its own imports
    from mlflow.entities import Metric, Param
    from mlflow.tracking import MlflowClient

T = TypeVar("T")

_KEY = "vae-study.trial"
#: What MLflow takes in one call.
_METRICS_AT_ONCE, _PARAMS_AT_ONCE, _PARAM_LENGTH = 1000, 100, 6000


class Mlflow:
    """Steps are examples."""

    def __init__(self, experiment: str, uri: str | None = None) -> None:
        logging.getLogger("mlflow").setLevel(logging.WARNING)  # it tells how it makes its tables
        self._uri = uri or os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SADeprecationWarning)
            self._client = MlflowClient(tracking_uri=self._uri)
            found = self._client.get_experiment_by_name(experiment)
            self._experiment = found.experiment_id if found else self._client.create_experiment(experiment)

    @property
    def place(self) -> str:
        """For a message."""
        return shown(self._uri)

    def known(self) -> set[str]:
        """Of the runs that were closed."""
        return {key for key, _, is_whole in self._runs() if is_whole and key is not None}

    def write(self, run: TrackedRun) -> None:
        """It stays RUNNING, which isn't known, until all of it is there."""
        for key, run_id, is_whole in list(self._runs(f"tags.`{_KEY}` = '{run.key}'")):
            if key == run.key and not is_whole:
                self._client.delete_run(run_id)
        tags = {**run.tags, _KEY: run.key}
        made = self._client.create_run(
            self._experiment, start_time=_milliseconds(run.started), tags=tags, run_name=run.name
        )
        run_id = made.info.run_id
        metrics = [
            Metric(metric, value, _milliseconds(point.time), point.examples)
            for point in run.curve
            for metric, value in point.metrics.items()
        ]
        metrics += [
            Metric(f"result.{key}", value, _milliseconds(run.finished), 0)
            for key, value in run.results.items()
        ]
        params = [Param(key, str(value)[:_PARAM_LENGTH]) for key, value in run.params.items()]
        for some_params in _parts(params, _PARAMS_AT_ONCE):
            self._client.log_batch(run_id, params=some_params)
        for some in _parts(metrics, _METRICS_AT_ONCE):
            self._client.log_batch(run_id, metrics=some)
        status = "FAILED" if run.failed else "FINISHED"
        self._client.set_terminated(run_id, status, end_time=_milliseconds(run.finished))

    def _runs(self, which: str = "") -> Iterator[tuple[str | None, str, bool]]:
        """(key, id, whether it was closed) of every run."""
        token = None
        while True:
            page = self._client.search_runs([self._experiment], which, max_results=1000, page_token=token)
            for run in page:
                yield run.data.tags.get(_KEY), run.info.run_id, run.info.status != "RUNNING"
            token = page.token
            if not token:
                return


def _milliseconds(seconds: float) -> int:
    return round(seconds * 1000)


def _parts(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    return (items[first : first + size] for first in range(0, len(items), size))
