"""Counts over the trials of an experiment, cheap enough to ask twice a second."""

from __future__ import annotations

from dataclasses import dataclass

from optuna.trial import TrialState
from sqlalchemy import case, func, select

from study.leases import of_name
from study.schema import curve, studies, trial_run, trials
from study.storage import Store


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

    def number(*states: TrialState) -> object:
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
