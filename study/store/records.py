"""What is known of an experiment's trials: tables for analysis, and counts cheap enough to ask twice a second.

A few queries each, no Optuna layer.
"""

from __future__ import annotations

import functools
import json
import math
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from optuna.distributions import BaseDistribution, json_to_distribution
from optuna.trial import TrialState
from sqlalchemy import (
    Boolean,
    ColumnElement,
    Connection,
    Double,
    Integer,
    Join,
    Select,
    and_,
    case,
    func,
    or_,
    select,
)
from sqlalchemy.sql.functions import sum as Sum

from study.store import schema
from study.store.schema import curve, learning_curve, of_name, studies, trial_params, trial_run
from study.store.store import Store
from vae.errors import FailureError

if TYPE_CHECKING:
    import pandas as pd  # imported where tables are made: workers and the terminal's tables start faster without it


@dataclass(frozen=True)
class Count:
    """One study's trials of one phase; the phase of a trial is known once it has been started."""

    arm: str
    phase: str
    finished: int
    running: int
    waiting: int
    evaluations: int
    best_loss: float | None


@dataclass(frozen=True)
class Timing:
    """An arm and the baseline timed side by side, in examples per second."""

    arm: str
    pair: int
    examples_per_second: float
    baseline_examples_per_second: float
    cold_start_seconds: float | None


class Points(NamedTuple):
    """A trial's evaluations, in their order."""

    examples: list[float]
    valid_loss: list[float]
    """Nats per example; NaN where it has none."""


def study_ids(store: Store, name: str) -> dict[str, int]:
    """The names of Optuna's studies of NAME and their ids, in order of creation."""
    query = select(studies.c.study_name, studies.c.study_id).where(of_name(name)).order_by(studies.c.study_id)
    with store.read() as connection:
        return {str(row.study_name): int(row.study_id) for row in connection.execute(query)}


def trials(store: Store, name: str) -> pd.DataFrame:
    """One row a trial of NAME, waiting ones too, by study and number.

    Columns: study_name, those of `trial_run`, Optuna's number and state, and its parameters as
    `params_lr`, ... (absent: not suggested).
    """
    import pandas as pd

    kept = [
        column for column in trial_run.c if column.name not in ("trial_id", "number", "state", "experiment")
    ]
    of_trial = schema.trials.c
    query = (
        select(studies.c.study_name, of_trial.trial_id, of_trial.number, of_trial.state, *kept)
        .select_from(_trials_and_runs())
        .where(of_name(name))
        .order_by(studies.c.study_id, of_trial.number)
    )
    with store.read() as connection:
        frame = _frame(connection, query)
        suggested = _parameters(connection, name)
    frame["state"] = [state.name for state in frame["state"]]
    fields = dict.fromkeys(field for params in suggested.values() for field in params)
    columns = {
        f"params_{field}": [suggested.get(trial_id, {}).get(field) for trial_id in frame["trial_id"]]
        for field in fields
    }
    return pd.concat([frame, pd.DataFrame(columns, index=frame.index)], axis=1)


def curves(store: Store, name: str, trial_ids: Sequence[int] | None = None) -> pd.DataFrame:
    """The rows of `learning_curve` of NAME (or of those trials of it), by trial and evaluation; NaN where
    a value is missing."""
    query = (
        select(learning_curve)
        .where(learning_curve.c.experiment == name)
        .order_by(learning_curve.c.trial_id, learning_curve.c.number)
    )
    if trial_ids is not None:
        query = query.where(learning_curve.c.trial_id.in_(trial_ids))
    with store.read() as connection:
        return _frame(connection, query).drop(columns="experiment")


def points(store: Store, name: str, trial_ids: Sequence[int]) -> dict[int, Points]:
    """Trial id -> its learning curve, of those trials of NAME that have an evaluation."""
    row = learning_curve.c
    query = (
        select(row.trial_id, row.examples, row.valid_loss)
        .where(row.experiment == name, row.trial_id.in_(trial_ids))
        .order_by(row.trial_id, row.number)
    )
    found: dict[int, Points] = {}
    with store.read() as connection:
        for trial_id, examples, loss in connection.execute(query):
            of_trial = found.setdefault(trial_id, Points([], []))
            of_trial.examples.append(_number(row.examples.name, examples))
            of_trial.valid_loss.append(_number(row.valid_loss.name, loss))
    return found


def versions(store: Store, name: str) -> list[dict[str, Any]]:
    """What the trials of NAME recorded of their versions and machine, each once; without what others wrote there."""
    query = select(trial_run.c.versions).where(trial_run.c.experiment == name).distinct()
    with store.read() as connection:
        texts = [text for (text,) in connection.execute(query) if text is not None]
    found = []
    for text in texts:
        with suppress(ValueError, RecursionError):
            found.append(json.loads(text))
    return [told for told in found if isinstance(told, dict)]


def throughput(store: Store, name: str) -> list[Timing]:
    """The timings of NAME by arm and pair."""
    row = schema.throughput.c
    speeds = (row.examples_per_second, row.baseline_examples_per_second, row.cold_start_seconds)
    query = select(row.arm, row.pair, *speeds).where(row.experiment == name).order_by(row.arm, row.pair)
    with store.read() as connection:
        return [
            Timing(
                arm,
                int(pair),
                _number(row.examples_per_second.name, own),
                _number(row.baseline_examples_per_second.name, baseline),
                None if cold is None else _number(row.cold_start_seconds.name, cold),
            )
            for arm, pair, own, baseline, cold in connection.execute(query)
        ]


def add_throughput(
    store: Store,
    name: str,
    arm: str,
    pair: int,
    *,
    examples_per_second: float,
    baseline_examples_per_second: float,
    cold_start_seconds: float | None,
) -> None:
    """Store or replace one interleaved timing of an arm and the baseline."""
    table = schema.throughput
    key = and_(table.c.experiment == name, table.c.arm == arm, table.c.pair == pair)
    with store.write() as connection:
        connection.execute(table.delete().where(key))
        connection.execute(
            table.insert().values(
                experiment=name,
                arm=arm,
                pair=pair,
                examples_per_second=examples_per_second,
                baseline_examples_per_second=baseline_examples_per_second,
                cold_start_seconds=cold_start_seconds,
            )
        )


def best_value(store: Store, name: str, arm: str, block: int, phase: str) -> float | None:
    """The lowest value of the complete trials of an arm in one block and phase; None without any."""
    run = trial_run.c
    query = select(func.min(run.value)).where(
        run.experiment == name,
        run.arm == arm,
        run.block == block,
        run.phase == phase,
        run.state == TrialState.COMPLETE.name,
    )
    with store.read() as connection:
        best = connection.execute(query).scalar()
    return None if best is None else float(best)


def counts(store: Store, name: str) -> list[Count]:
    """Counts by study and phase, in order of the studies' creation."""
    state = schema.trials.c.state
    phase = func.coalesce(trial_run.c.phase, "")

    def number(*states: TrialState) -> Sum[int]:
        return func.sum(case((state.in_(states), 1), else_=0))

    query = (
        select(
            studies.c.study_name,
            phase,
            number(TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL),
            number(TrialState.RUNNING),
            number(TrialState.WAITING),
            func.min(trial_run.c.best_valid_loss),
        )
        .select_from(_trials_and_runs())
        .where(of_name(name))
        .group_by(studies.c.study_id, studies.c.study_name, phase)
        .order_by(studies.c.study_id, phase)
    )
    evaluated = (
        select(studies.c.study_name, phase, func.count())
        .select_from(_trials_and_runs().join(curve, curve.c.trial_id == schema.trials.c.trial_id))
        .where(of_name(name))
        .group_by(studies.c.study_name, phase)
    )
    with store.read() as connection:
        rows = connection.execute(query).all()
        evaluations = {(study, part): n for study, part, n in connection.execute(evaluated)}
    return [
        Count(
            arm=study.removeprefix(f"{name}/"),
            phase=part or "waiting",
            finished=int(finished),
            running=int(running),
            waiting=int(waiting),
            evaluations=evaluations.get((study, part), 0),
            best_loss=best,
        )
        for study, part, finished, running, waiting, best in rows
    ]


def remaining(store: Store, name: str) -> int:
    """Trials of NAME that wait or run (those that somebody runs through Optuna alone don't count)."""
    state = schema.trials.c.state
    ours = and_(state == TrialState.RUNNING, trial_run.c.trial_id.is_not(None))
    query = (
        select(func.count())
        .select_from(_trials_and_runs())
        .where(of_name(name), or_(state == TrialState.WAITING, ours))
    )
    with store.read() as connection:
        return int(connection.execute(query).scalar_one())


def progress(store: Store, name: str) -> int:
    """A number that grows whenever a trial of NAME is begun, taken over or finished."""
    counted = func.coalesce(func.sum(trial_run.c.attempt), 0) + func.count(trial_run.c.outcome)
    with store.read() as connection:
        return int(connection.execute(select(counted).where(trial_run.c.experiment == name)).scalar_one())


def headway(store: Store, name: str) -> tuple[int, ...]:
    """Changes whenever a trial of NAME is new, gets further, dies or is finished; not when put back."""
    numbers = (func.count(), func.sum(trial_run.c.furthest), func.sum(trial_run.c.died))
    query = select(*numbers, func.count(trial_run.c.outcome)).where(trial_run.c.experiment == name)
    with store.read() as connection:
        return tuple(int(number or 0) for number in connection.execute(query).one())


def _trials() -> Join:
    return studies.join(schema.trials, schema.trials.c.study_id == studies.c.study_id)


def _trials_and_runs() -> Join:
    return _trials().outerjoin(trial_run, _same_trial())


def _same_trial() -> ColumnElement[bool]:
    return trial_run.c.trial_id == schema.trials.c.trial_id


def _parameters(connection: Connection, name: str) -> dict[int, dict[str, Any]]:
    query = (
        select(trial_params)
        .select_from(_trials().join(trial_params, trial_params.c.trial_id == schema.trials.c.trial_id))
        .where(of_name(name))
        .order_by(trial_params.c.trial_id, trial_params.c.param_id)
    )
    found: dict[int, dict[str, Any]] = defaultdict(dict)
    for row in connection.execute(query):
        distribution = distribution_of(row.distribution_json)
        found[row.trial_id][row.param_name] = distribution.to_external_repr(row.param_value)
    return found


@functools.lru_cache(maxsize=4096)
def distribution_of(text: str) -> BaseDistribution:
    """A parameter's distribution from Optuna's JSON of it."""
    return json_to_distribution(text)


def _frame(connection: Connection, query: Select[Any]) -> pd.DataFrame:
    """The rows of a query with one dtype a column whatever is missing: float64, Int64, boolean, object.

    Raises FailureError where a column holds another type, which SQLite lets any program write."""
    import pandas as pd

    result = connection.execute(query)
    frame = pd.DataFrame([tuple(row) for row in result], columns=list(result.keys()), dtype=object)
    for column in query.selected_columns:
        kinds = (
            (Double, "float64", "number"),
            (Boolean, "boolean", "truth"),
            (Integer, "Int64", "whole number"),
        )
        for kind, dtype, words in kinds:
            if not isinstance(column.type, kind):
                continue
            try:
                frame[column.name] = frame[column.name].astype(dtype)
            except (ValueError, TypeError, OverflowError) as error:
                raise _mistyped(column.name, words, error) from None
    return frame


def _number(column: str, value: Any) -> float:
    """A number of a column; NaN where there is none. Raises FailureError as `_frame`."""
    try:
        return math.nan if value is None else float(value)
    except (ValueError, TypeError, OverflowError) as error:
        raise _mistyped(column, "number", error) from None


def _mistyped(column: str, words: str, error: Exception) -> FailureError:
    return FailureError(
        f"Column {column} of the database's own tables holds what is no {words} ({error}): another program has "
        "written there. Set it right, or take a copy of before."
    )
