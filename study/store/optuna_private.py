"""All that we touch of Optuna's private parts, in one place: a new Optuna is tried here first.

`tests/study/store/test_optuna_private.py` names each touch and says what breaks without it.
"""

from __future__ import annotations

import copy
import json
import time
from collections import defaultdict
from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages._cached_storage import _CachedStorage
from optuna.storages._rdb.models import (
    StudyModel,
    TrialIntermediateValueModel,
    TrialModel,
    TrialSystemAttributeModel,
    TrialUserAttributeModel,
)
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import Connection, delete, func, insert, select

#: Seconds for which pruners may use what they know of other trials. Asking costs as much as some epochs of
#: a small trial, and other trials end seldom.
REMEMBERED_SECONDS = 1.0


class RememberingStudy(Study):
    """An Optuna study whose complete trials are read anew at most once a second, and at `forget`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._remembered: tuple[float, list[FrozenTrial]] | None = None

    def forget(self) -> None:
        """Read anew at the next look: at a trial's start, so that one worker alone is deterministic."""
        self._remembered = None
        _read_anew(self)

    def get_trials(
        self, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        """As Optuna's; COMPLETE trials without a copy, as pruners ask for them, may be a second old."""
        if deepcopy or states != (TrialState.COMPLETE,):
            return super().get_trials(deepcopy, states)
        now = time.monotonic()
        if self._remembered is None or now - self._remembered[0] > REMEMBERED_SECONDS:
            # After `forget` they are read once, for the sampler and for the pruner.
            just_read = self._remembered is None
            self._remembered = (now, self._get_trials(deepcopy=False, states=states, use_cache=just_read))
        return self._remembered[1]


class DraftStudy(Study):
    """A study without a database: notes down the attributes that the dashboard's functions would write into one."""

    def __init__(self, attributes: Mapping[str, Any]) -> None:
        self.attributes = dict(attributes)
        self._study_id = 0
        # All that those functions ask of a storage is below.
        self._storage: Any = self

    def get_study_system_attrs(self, study_id: int) -> dict[str, Any]:  # noqa: ARG002
        return dict(self.attributes)

    def set_study_system_attr(self, study_id: int, key: str, value: Any) -> None:  # noqa: ARG002
        self.attributes[key] = value


def trial_id(trial: optuna.Trial) -> int:
    """The id of a trial in Optuna's tables, which ours share."""
    return trial._trial_id


def reports(trial: optuna.Trial) -> dict[int, float]:
    """The reports that the trial itself, and so its pruner, sees: step -> value. Adding to it writes nothing."""
    return trial._cached_frozen_trial.intermediate_values


def write_reports(connection: Connection, trial_id: int, reports: Iterable[tuple[int, float]]) -> None:
    """Write (step, value) pairs as Optuna's `Trial.report` would, in the caller's transaction."""
    rows = []
    for step, value in reports:
        number, kind = TrialIntermediateValueModel.intermediate_value_to_stored_repr(value)
        rows.append(
            {
                "trial_id": trial_id,
                "step": step,
                "intermediate_value": number,
                "intermediate_value_type": kind,
            }
        )
    if rows:
        connection.execute(insert(TrialIntermediateValueModel), rows)


def drop_reports(connection: Connection, trial: optuna.Trial, after: int) -> None:
    """Forget the reports of steps above `after`, in the caller's transaction and in what the trial's pruner sees."""
    table, known = TrialIntermediateValueModel, reports(trial)
    connection.execute(delete(table).where(table.trial_id == trial._trial_id, table.step > after))
    for step in [step for step in known if step > after]:
        del known[step]


def enqueue(
    connection: Connection, waiting: Sequence[tuple[int, Mapping[str, Any], Mapping[str, Any]]]
) -> None:
    """Enqueue (study id, parameters, user attributes) as Optuna's `Study.enqueue_trial` would, in this order and in
    the caller's transaction: one by one each takes as long as an epoch of a small model."""
    by_study: dict[int, list[tuple[Mapping[str, Any], Mapping[str, Any]]]] = defaultdict(list)
    for study_id, params, attributes in waiting:
        by_study[study_id].append((params, attributes))
    for study_id, told in by_study.items():
        of_study = TrialModel.study_id == study_id
        # Whoever numbers a trial of the study holds its row, as Optuna does. SQLite has locked the others out already.
        connection.execute(
            select(StudyModel.study_id).where(StudyModel.study_id == study_id).with_for_update()
        )
        first = connection.execute(select(func.count()).where(of_study)).scalar_one()
        numbers = range(first, first + len(told))
        rows = [{"study_id": study_id, "number": number, "state": TrialState.WAITING} for number in numbers]
        connection.execute(insert(TrialModel), rows)
        new = select(TrialModel.number, TrialModel.trial_id).where(of_study, TrialModel.number >= first)
        ids = {row.number: row.trial_id for row in connection.execute(new)}
        fixed = [
            _attribute(ids[number], "fixed_params", dict(params))
            for number, (params, _) in zip(numbers, told, strict=True)
        ]
        connection.execute(insert(TrialSystemAttributeModel), fixed)
        noted = [
            _attribute(ids[number], key, value)
            for number, (_, given) in zip(numbers, told, strict=True)
            for key, value in given.items()
        ]
        if noted:
            connection.execute(insert(TrialUserAttributeModel), noted)


def write_attributes(connection: Connection, trial_id: int, attributes: Mapping[str, Any]) -> None:
    """Write user attributes as Optuna's `Trial.set_user_attr` would, in the caller's transaction."""
    if not attributes:
        return
    table = TrialUserAttributeModel
    connection.execute(delete(table).where(table.trial_id == trial_id, table.key.in_(list(attributes))))
    connection.execute(insert(table), [_attribute(trial_id, key, value) for key, value in attributes.items()])


def _attribute(trial_id: int, key: str, value: Any) -> dict[str, Any]:
    return {"trial_id": trial_id, "key": key, "value_json": json.dumps(value)}


def start_trial(study: Study, trial_id: int, waiting: bool) -> optuna.Trial | None:
    """A trial to run, as `study.ask()` gives one, but this one; from WAITING it becomes RUNNING.

    None where it was deleted, or somebody runs it through Optuna alone.
    """
    try:
        if waiting and not study._storage.set_trial_state_values(trial_id, TrialState.RUNNING):
            return None
        _read_anew(study)
        trial = optuna.Trial(study, trial_id)
    except (KeyError, UpdateFinishedTrialError):
        return None
    # Optuna's cache must know the trial before it stores a parameter of it. study.ask() reads every
    # waiting trial for that: 0.16 s at 1,000 of them, which trials with fixed parameters don't need.
    if isinstance(study._storage, _CachedStorage):
        seen = copy.deepcopy(trial._cached_frozen_trial)
        study._storage._add_trials_to_cache(study._study_id, [seen])
    return trial


def put_back(trial: optuna.Trial) -> bool:
    """Let Optuna's trial wait again; False where it is finished or deleted."""
    try:
        trial.storage.set_trial_state_values(trial._trial_id, TrialState.WAITING)
    except (KeyError, UpdateFinishedTrialError):
        return False
    return True


def tell(study: Study, trial: optuna.Trial | int, state: TrialState, value: float | None) -> None:
    """Tell Optuna a result that our row already holds; a trial told or deleted meanwhile is fine.

    Optuna gives a pruned trial its last report as the value, so `value` is told for COMPLETE only.
    """
    values = value if state is TrialState.COMPLETE else None
    try:
        try:
            study.tell(trial, values, state, skip_if_finished=True)
        except ValueError:
            # WAITING: its worker died between claiming and starting, or was woken while releasing it.
            if not study._storage.set_trial_state_values(_id(study, trial), TrialState.RUNNING):
                raise
            study.tell(trial, values, state, skip_if_finished=True)
    except (KeyError, UpdateFinishedTrialError):
        return


def _id(study: Study, trial: optuna.Trial | int) -> int:
    if isinstance(trial, optuna.Trial):
        return trial._trial_id
    return study._storage.get_trial_id_from_study_id_trial_number(study._study_id, trial)


def _read_anew(study: Study) -> None:
    study._thread_local.cached_all_trials = None  # as study.ask() does: see the study anew
