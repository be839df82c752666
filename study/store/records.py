"""What is known of an experiment's trials, cheap enough to ask twice a second: a few queries, no Optuna layer."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

from optuna.distributions import json_to_distribution
from optuna.trial import TrialState
from sqlalchemy import case, func, select
from sqlalchemy.sql.functions import sum as Sum

from study.store.schema import curve, of_name, studies, trial_params, trial_run, trial_user_attributes, trials
from study.store.store import Store


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


def counts(store: Store, name: str) -> list[Count]:
    """Counts by study and phase, in order of the studies' creation."""
    state = trials.c.state
    phase = func.coalesce(trial_run.c.phase, "")

    def number(*states: TrialState) -> Sum[int]:
        return func.sum(case((state.in_(states), 1), else_=0))

    joined = studies.join(trials, trials.c.study_id == studies.c.study_id).outerjoin(
        trial_run, trial_run.c.trial_id == trials.c.trial_id
    )
    query = (
        select(
            studies.c.study_name,
            phase,
            number(TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL),
            number(TrialState.RUNNING),
            number(TrialState.WAITING),
            func.min(trial_run.c.best_valid_loss),
        )
        .select_from(joined)
        .where(of_name(name))
        .group_by(studies.c.study_id, studies.c.study_name, phase)
        .order_by(studies.c.study_id, phase)
    )
    evaluated = (
        select(studies.c.study_name, phase, func.count())
        .select_from(joined.join(curve, curve.c.trial_id == trials.c.trial_id))
        .where(of_name(name))
        .group_by(studies.c.study_name, phase)
    )
    with store.engine.begin() as connection:
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


def attributes(store: Store, name: str) -> dict[int, dict[str, Any]]:
    """Optuna's user attributes of every trial of NAME, by trial id."""
    query = (
        select(
            trial_user_attributes.c.trial_id, trial_user_attributes.c.key, trial_user_attributes.c.value_json
        )
        .select_from(
            studies.join(trials, trials.c.study_id == studies.c.study_id).join(
                trial_user_attributes, trial_user_attributes.c.trial_id == trials.c.trial_id
            )
        )
        .where(of_name(name))
    )
    found: dict[int, dict[str, Any]] = defaultdict(dict)
    with store.engine.begin() as connection:
        for trial_id, key, value in connection.execute(query):
            found[trial_id][key] = json.loads(value)
    return found


def parameters(store: Store, name: str) -> dict[int, dict[str, Any]]:
    """The suggested parameters of every trial of NAME, by trial id, as Optuna's trial.params has them."""
    query = (
        select(
            trial_params.c.trial_id,
            trial_params.c.param_name,
            trial_params.c.param_value,
            trial_params.c.distribution_json,
        )
        .select_from(
            studies.join(trials, trials.c.study_id == studies.c.study_id).join(
                trial_params, trial_params.c.trial_id == trials.c.trial_id
            )
        )
        .where(of_name(name))
        .order_by(trial_params.c.trial_id, trial_params.c.param_id)
    )
    found: dict[int, dict[str, Any]] = defaultdict(dict)
    with store.engine.begin() as connection:
        for trial_id, field, value, distribution in connection.execute(query):
            found[trial_id][field] = json_to_distribution(distribution).to_external_repr(value)
    return found
