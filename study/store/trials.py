"""The trials of an experiment as the planner reads them: all of them once, and then only what has changed."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from typing import Any, NamedTuple

from sqlalchemy import select

from study.store.records import distribution_of
from study.store.schema import of_name, studies, trial_params, trial_run, trial_user_attributes, trials
from study.store.store import Store

#: Trials asked for in one query: databases limit how many values one may name.
_AT_ONCE = 5_000


class Mark(NamedTuple):
    """What changes whenever a trial does: a trial with the mark of before is the trial of before."""

    study: str
    number: int
    state: str
    """Optuna's."""
    attempt: int | None
    started: float | None
    outcome: str | None
    finished: float | None


class Record(NamedTuple):
    """What a trial was told and what came of it; None where it isn't known yet."""

    attributes: dict[str, Any]
    params: dict[str, Any]
    recipe: str | None
    hit: bool | None
    examples_to_target: float | None
    score: float | None
    valid_loss: float | None
    best_valid_loss: float | None
    test_loss: float | None
    examples: int | None
    reason: str | None


def read_trials(
    store: Store, name: str, known: Mapping[int, Mark]
) -> tuple[dict[int, Mark], dict[int, Record]]:
    """(the mark of every trial of NAME by study and number, the record of each whose mark isn't the known one),
    both by trial id, in one transaction. Raises FailureError."""
    runs = studies.join(trials, trials.c.study_id == studies.c.study_id).outerjoin(
        trial_run, trial_run.c.trial_id == trials.c.trial_id
    )
    marks = (
        select(
            trials.c.trial_id,
            studies.c.study_name,
            trials.c.number,
            trials.c.state,
            trial_run.c.attempt,
            trial_run.c.started,
            trial_run.c.outcome,
            trial_run.c.finished,
        )
        .select_from(runs)
        .where(of_name(name))
        .order_by(studies.c.study_id, trials.c.number)
    )
    attribute, param = trial_user_attributes.c, trial_params.c
    told = select(attribute.trial_id, attribute.key, attribute.value_json)
    given = select(param.trial_id, param.param_name, param.param_value, param.distribution_json).order_by(
        param.trial_id, param.param_id
    )
    results = select(trials.c.trial_id, *(trial_run.c[column] for column in Record._fields[2:])).select_from(
        trials.outerjoin(trial_run, trial_run.c.trial_id == trials.c.trial_id)
    )
    now: dict[int, Mark] = {}
    attributes: dict[int, dict[str, Any]] = defaultdict(dict)
    params: dict[int, dict[str, Any]] = defaultdict(dict)
    records: dict[int, Record] = {}
    with store.read() as connection:
        for trial_id, study, number, state, *rest in connection.execute(marks):
            now[trial_id] = Mark(study, number, state.name, *rest)
        changed = [trial_id for trial_id, mark in now.items() if known.get(trial_id) != mark]
        for first in range(0, len(changed), _AT_ONCE):
            part = changed[first : first + _AT_ONCE]
            for trial_id, key, value in connection.execute(told.where(attribute.trial_id.in_(part))):
                attributes[trial_id][key] = json.loads(value)
            for trial_id, field, value, distribution in connection.execute(
                given.where(param.trial_id.in_(part))
            ):
                params[trial_id][field] = distribution_of(distribution).to_external_repr(value)
            for trial_id, *result in connection.execute(results.where(trials.c.trial_id.in_(part))):
                records[trial_id] = Record(attributes[trial_id], params[trial_id], *result)
    return now, records
