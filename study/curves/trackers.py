"""Curves that trackers keep: TensorBoard event folders, MLflow stores, Optuna's intermediate values, W&B's exports."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from study.curves.files import read_file
from study.curves.table import Rows
from study.store.foreign import open_optuna
from vae.errors import FailureError, UserError, did_you_mean

#: What TensorBoard's event files are called.
EVENTS = "*tfevents*"
_WALL = "wall_seconds"
"""Seconds since a run's first record, evaluations and waiting included: seconds of training only where told so."""


def read_tensorboard(folder: Path, tag: str | None) -> list[Rows]:
    """A run a folder with event files: columns step, wall_seconds and the tag's. Raises UserError."""
    try:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
        from tensorboard.util.tensor_util import make_ndarray
    except ImportError:
        raise UserError(f"{folder}: TensorBoard's files need pip install 'vae-study[tensorboard]'.") from None
    found, tags = [], set()
    for run in sorted({path.parent for path in folder.rglob(EVENTS) if path.is_file()}):
        # Steps that go back are refused, not thrown away in silence; 0: all points, no sample of them.
        events = EventAccumulator(
            str(run), size_guidance={"scalars": 0, "tensors": 0}, purge_orphaned_data=False
        )
        events.Reload()
        scalars, tensors = events.Tags()["scalars"], events.Tags()["tensors"]
        tags |= {*scalars, *tensors}
        if tag in scalars:
            points = [(event.step, event.wall_time, float(event.value)) for event in events.Scalars(tag)]
        elif tag in tensors:  # as TensorFlow 2 writes a scalar
            try:
                points = [
                    (event.step, event.wall_time, float(make_ndarray(event.tensor_proto).item()))
                    for event in events.Tensors(tag)
                ]
            except (TypeError, ValueError):  # an image, a histogram, a text
                raise UserError(f"{run}: {tag!r} (--value-from) is not one number a step.") from None
        else:
            continue
        columns = _columns(points, str(tag))
        found.append(Rows(str(run), columns, run.relative_to(folder).as_posix()))
    return _require(found, folder, tag, tags)


def read_mlflow(source: Path, metric: str | None) -> list[Rows]:
    """A run of every experiment of a local store, a folder or its SQLite file: columns step, wall_seconds, the
    metric's, experiment, ended, params.NAME and tags.NAME. Raises UserError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of its own imports
            from mlflow.exceptions import MlflowException
            from mlflow.tracking import MlflowClient
    except ImportError:
        raise UserError(f"{source}: MLflow's stores need pip install 'vae-study[mlflow]'.") from None
    uri = source.absolute().as_uri() if source.is_dir() else f"sqlite:///{source.absolute()}"
    found, metrics = [], set()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # its models are of an older SQLAlchemy
            client = MlflowClient(tracking_uri=uri)
            for experiment in client.search_experiments():
                for run in _runs_of(client, experiment.experiment_id):
                    metrics |= set(run.data.metrics)
                    if metric is None or metric not in run.data.metrics:
                        continue
                    history = sorted(
                        client.get_metric_history(run.info.run_id, metric),
                        key=lambda m: (m.timestamp, m.step),
                    )
                    points = [(m.step, m.timestamp / 1000.0, m.value) for m in history]
                    columns = _columns(points, str(metric))
                    told = {f"params.{key}": value for key, value in run.data.params.items()}
                    told |= {f"tags.{key}": value for key, value in run.data.tags.items()}
                    ended = _MLFLOW_ENDED.get(run.info.status)
                    told |= {"experiment": experiment.name, "ended": ended, "trial": run.info.run_id}
                    columns |= {key: [value] * len(points) for key, value in told.items()}
                    found.append(Rows(f"{source}, run {run.info.run_name}", columns, run.info.run_name))
    except MlflowException as error:
        raise FailureError(f"{source} is no store that this MLflow reads: {_first_line(error)}.") from None
    return _require(found, source, metric, metrics)


#: MLflow's word for how a run ended -> ours; a run that finished is complete or what its values say.
_MLFLOW_ENDED = {"FAILED": "failed", "KILLED": "censored", "RUNNING": "censored", "SCHEDULED": "censored"}


def _runs_of(client: Any, experiment_id: str) -> Iterable[Any]:
    token = None
    while True:
        page = client.search_runs([experiment_id], max_results=1000, page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def read_optuna(source: str, maximise: bool) -> list[Rows]:
    """A trial of any Optuna database, by its URL or file, or journal that reported intermediate values: columns study,
    trial, step, value, ended, params.NAME and user_attrs.NAME. Raises UserError, FailureError."""
    import optuna
    from optuna.study import StudyDirection
    from optuna.trial import TrialState

    ended = {
        TrialState.COMPLETE: "complete",
        TrialState.PRUNED: "censored",
        TrialState.RUNNING: "censored",
        TrialState.FAIL: "failed",
    }
    found = []
    with open_optuna(source) as (storage, place):
        for name in optuna.get_all_study_names(storage):
            study = optuna.load_study(study_name=name, storage=storage)
            trials = [trial for trial in study.get_trials(deepcopy=False) if trial.intermediate_values]
            if trials and (study.directions[0] is StudyDirection.MAXIMIZE) is not maximise:
                way = "minimises: leave out --maximise" if maximise else "maximises: add --maximise"
                raise UserError(f"{place}: study {name!r} {way}.")
            for trial in trials:
                values = sorted(trial.intermediate_values.items())
                told = {f"params.{key}": value for key, value in trial.params.items()}
                told |= {f"user_attrs.{key}": value for key, value in trial.user_attrs.items()}
                told |= {"study": name, "trial": trial.number, "ended": ended.get(trial.state)}
                columns: dict[str, Sequence[Any]] = {
                    key: [value] * len(values) for key, value in told.items()
                }
                columns |= {"step": [step for step, _ in values], "value": [value for _, value in values]}
                found.append(Rows(f"{place}, {name}", columns, f"{name}/{trial.number}"))
    if not found:
        raise UserError(f"{place} has no trial that reported intermediate values.")
    return found


def read_wandb(path: Path, metric: str | None) -> list[Rows]:
    """The CSV file that a W&B line plot exports: a column "RUN - METRIC" a run over a common "Step", beside its
    __MIN and __MAX. The columns are step and the metric's. Raises UserError."""
    columns = read_file(path, "csv").columns
    step = next((name for name in columns if name.lower() == "step"), None)
    runs = [name for name in columns if " - " in name and not name.endswith(("__MIN", "__MAX"))]
    if step is None or not runs:
        raise UserError(
            f"{path} is no export of a W&B line plot: it has no columns 'Step' and 'RUN - METRIC'."
        )
    found, metrics = [], set()
    for name in runs:
        run, _, of_run = name.rpartition(" - ")
        metrics.add(of_run)
        if of_run == metric:
            found.append(Rows(str(path), {"step": columns[step], of_run: columns[name]}, run))
    return _require(found, path, metric, metrics)


def _columns(points: Sequence[tuple[int, float, float]], name: str) -> dict[str, Sequence[Any]]:
    start = points[0][1] if points else 0.0
    return {
        "step": [step for step, _, _ in points],
        _WALL: [time - start for _, time, _ in points],
        name: [value for _, _, value in points],
    }


def _require(found: list[Rows], source: Path, name: str | None, known: set[str]) -> list[Rows]:
    if name is None:
        listed = ", ".join(sorted(known)) or "none"
        raise UserError(f"{source}: which values? Name them with --value-from. There are: {listed}.")
    if not found:
        raise UserError(f"{source}: no values {name!r} (--value-from). {did_you_mean(name, sorted(known))}")
    return found


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0].rstrip(".")[:200]
