"""Frames behind the comparison's figures: runs and curves in, one tidy frame out. Nothing is drawn here.

Losses are nats per example, examples are training examples seen, seconds are examples over the throughput that
was measured apart. `curves` maps a trial's id to its recorded curve.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from study.design.experiment import Experiment
from study.design.space import Dimension
from study.protocol.history import Run
from study.protocol.selection import State
from study.statistics.curves import Curve, median_and_band
from study.statistics.speed_up import speed_up_by_target
from study.statistics.survival import kaplan_meier
from study.terms import Phase
from vae.recipe import Recipe

Curves = Mapping[int, Curve]

#: Target levels at which the speed-up is estimated.
TARGETS = 25


def confirmed(state: State, arm: str) -> list[Run]:
    """The arm's finished confirmation runs, by seed index."""
    return [run for run in state.of(arm, Phase.CONFIRM) if run.outcome is not None]


def changes(recipe: Recipe | None, base: Recipe) -> str:
    """What a recipe sets differently from the experiment's baseline recipe: "lr 0.0041, optimizer muon"."""
    if recipe is None:
        return ""
    before, after = base.model_dump(), recipe.model_dump()
    found = [
        f"{key} {brief(value)}" for key, value in after.items() if value != before[key] and key != "seed"
    ]
    return ", ".join(found) or "as the baseline before tuning"


def brief(value: object) -> str:
    """A recipe's value in few characters."""
    if isinstance(value, float):
        return f"{value:.3g}"
    if isinstance(value, list | tuple):
        return "-".join(str(part) for part in value)
    return str(value)


def speeds(throughput: pd.DataFrame) -> dict[str, float]:
    """Examples per second of each arm that was timed, on one scale: the baseline's median speed over all timings
    times the arm's ratio to the baseline that ran beside it. Empty without timings."""
    if throughput.empty:
        return {}
    baseline = float(throughput["baseline_examples_per_second"].median())
    ratio = throughput["examples_per_second"] / throughput["baseline_examples_per_second"]
    factors = np.exp(ratio.map(math.log).groupby(throughput["arm"]).mean())
    return {"baseline": baseline} | {str(arm): baseline * float(factor) for arm, factor in factors.items()}


def bands(runs: Mapping[str, Sequence[Run]], curves: Curves, speed: Mapping[str, float]) -> pd.DataFrame:
    """Median and middle 80 % of the validation loss over an arm's seeds at each evaluation.

    Columns arm, examples, seconds (NaN where the arm was not timed), median, low, high."""
    parts = []
    for arm, own in runs.items():
        recorded = [curves[run.trial_id] for run in own if run.trial_id in curves]
        if not recorded:
            continue
        band = median_and_band(recorded)
        seconds = band.examples / speed.get(arm, np.nan)
        columns = {"examples": band.examples, "seconds": seconds}
        columns |= {"median": band.median, "low": band.low, "high": band.high}
        parts.append(pd.DataFrame({"arm": arm} | columns))
    return _stacked(parts, ["arm", "examples", "seconds", "median", "low", "high"])


def seeds(state: State, runs: Mapping[str, Sequence[Run]], speed: Mapping[str, float]) -> pd.DataFrame:
    """One row a confirmation run. Columns arm, block, seed, outcome, hit, examples (to target; tau on a miss),
    seconds, best_loss, test_loss, recipe (what it changes)."""
    base = state.experiment.recipe
    rows = []
    for arm, own in runs.items():
        for run in own:
            E = run.examples_to_target if run.hit else float(state.workload.tau)
            rows.append(
                {
                    "arm": arm,
                    "block": run.block,
                    "seed": run.recipe.seed if run.recipe is not None else None,
                    "outcome": run.outcome,
                    "hit": run.hit,
                    "examples": E,
                    "seconds": E / speed.get(arm, np.nan),
                    "best_loss": run.best_loss,
                    "test_loss": run.test_loss,
                    "recipe": changes(run.recipe, base),
                }
            )
    return pd.DataFrame(rows, columns=_SEEDS)


_SEEDS = ["arm", "block", "seed", "outcome", "hit", "examples", "seconds", "best_loss", "test_loss", "recipe"]


def survival(runs: pd.DataFrame) -> pd.DataFrame:
    """Kaplan-Meier curves of the frame `seeds`. Columns arm, examples, survival (share of seeds that have not
    reached the target), low, high (pointwise 95 %)."""
    parts = []
    for arm, own in runs.groupby("arm", sort=False):
        km = kaplan_meier(own["examples"], own["hit"].astype(bool))
        columns = {"examples": km.examples, "survival": km.survival, "low": km.low, "high": km.high}
        parts.append(pd.DataFrame({"arm": arm} | columns))
    return _stacked(parts, ["arm", "examples", "survival", "low", "high"])


def by_target(state: State, runs: Mapping[str, Sequence[Run]], curves: Curves) -> pd.DataFrame:
    """The speed-up in examples at other targets, from the baseline's loss at a tenth of tau down to the lowest
    that all its seeds reach; the recipes stay those tuned at the main target.

    Columns arm, target, speed_up, low, high, baseline_hits, arm_hits, seeds."""
    columns = ["arm", "target", "speed_up", "low", "high", "baseline_hits", "arm_hits", "seeds"]
    baseline = {run.index: run for run in runs.get("baseline", []) if run.trial_id in curves}
    ends = [curves[run.trial_id].best() for run in baseline.values()]
    starts = [curves[run.trial_id].best(0.1 * state.workload.tau) for run in baseline.values()]
    if not ends or not np.isfinite([*ends, *starts]).all() or max(ends) >= float(np.median(starts)):
        return pd.DataFrame(columns=columns)
    targets = np.linspace(float(np.median(starts)), max(ends), TARGETS)
    rows = []
    for arm, own in runs.items():
        pairs = [
            (baseline[run.index], run) for run in own if run.index in baseline and run.trial_id in curves
        ]
        if arm == "baseline" or not pairs:
            continue
        blocks = [run.block for _, run in pairs] if state.experiment.blocks > 1 else None
        before = [curves[run.trial_id] for run, _ in pairs]
        after = [curves[run.trial_id] for _, run in pairs]
        for at in speed_up_by_target(before, after, targets, blocks):
            e = at.estimate
            values = (arm, at.target, e.ratio, e.low, e.high, at.baseline_hits, at.arm_hits, at.seeds)
            rows.append(dict(zip(columns, values, strict=True)))
    return pd.DataFrame(rows, columns=columns)


def tuning(state: State, arms: Sequence[str], curves: Curves) -> pd.DataFrame:
    """One row a finished tuning trial. Columns arm, block, point (from 1), number, outcome, hit, examples (to the
    target on a hit; else as far as it ran), best (fewest examples so far in this block; NaN before a hit),
    recipe, won. Empty while there is no target."""
    columns = ["arm", "block", "point", "number", "outcome", "hit", "examples", "best", "recipe", "won"]
    rows = []
    for arm in arms if state.target is not None else ():
        for block in range(1, state.experiment.blocks + 1):
            won = state.winner(arm, block)
            best = np.nan
            for run in state.of(arm, Phase.TUNE, block):
                if run.outcome is None:
                    continue
                E, hit = _reached(run, curves, state)
                best = np.nanmin([best, E]) if hit else best
                recipe = changes(run.recipe, state.experiment.recipe)
                is_winner = won is not None and won.trial_id == run.trial_id
                values = (arm, block, run.index + 1, run.number, run.outcome, hit, E, best, recipe, is_winner)
                rows.append(dict(zip(columns, values, strict=True)))
    return pd.DataFrame(rows, columns=columns)


def _reached(run: Run, curves: Curves, state: State) -> tuple[float, bool]:
    """Examples to target and True, or the examples that the run lasted and False; from the curve, since the
    baseline's first block ran before there was a target."""
    from study.statistics.curves import examples_to_target

    curve = curves.get(run.trial_id)
    if curve is None or state.target is None:
        return float("nan"), False
    E, hit = examples_to_target(curve.examples, curve.valid_loss, state.target)
    return (E, True) if hit else (float(curve.examples[-1]), False)


def winners(state: State, arms: Sequence[str]) -> pd.DataFrame:
    """Where tuning points lie in their arm's space. Columns arm, field, block, value, position (0..1 of the
    range, log where the range is), low, high, won; numeric dimensions only."""
    experiment: Experiment = state.experiment
    columns = ["arm", "field", "block", "value", "position", "low", "high", "won"]
    rows = []
    for arm in arms:
        shared, own = experiment.spaces(arm, state.workload)
        for block in range(1, experiment.blocks + 1):
            best = state.winner(arm, block)
            for run in state.of(arm, Phase.TUNE, block) if best is not None else ():
                for field, dimension in (shared | own).items():
                    if field not in run.params or dimension.low is None or dimension.high is None:
                        continue
                    value = float(run.params[field])
                    won = best is not None and run.trial_id == best.trial_id
                    at = position(dimension, value)
                    values = (arm, field, block, value, at, dimension.low, dimension.high, won)
                    rows.append(dict(zip(columns, values, strict=True)))
    return pd.DataFrame(rows, columns=columns)


def position(dimension: Dimension, value: float) -> float:
    """Where a value lies between the ends of a numeric dimension: 0 at low, 1 at high, on its own scale."""
    assert dimension.low is not None
    assert dimension.high is not None
    if dimension.log:
        return float(np.log(value / dimension.low) / np.log(dimension.high / dimension.low))
    return (value - dimension.low) / (dimension.high - dimension.low)


def savings(state: State) -> pd.DataFrame:
    """What stopping early saved, by arm. Columns part, rule, trials, stopped, used, saved (shares of the examples
    that these trials would have taken to tau); only parts in which trials could be stopped."""
    groups: dict[tuple[str, str], list[Run]] = {}
    for run in state.runs:
        if run.outcome is None:
            continue
        if run.assignment.capped:
            groups.setdefault((run.arm, "capping"), []).append(run)
        elif run.phase == "search":
            groups.setdefault(("joint search", state.experiment.search.pruner), []).append(run)
    rows = []
    for (part, rule), runs in groups.items():
        used = share_used(state, runs)
        stopped = sum(run.outcome in ("capped", "pruned", "stopped", "hit") for run in runs)
        rows.append(
            {
                "part": part,
                "rule": rule,
                "trials": len(runs),
                "stopped": stopped,
                "used": used,
                "saved": 1.0 - used,
            }
        )
    return pd.DataFrame(rows, columns=["part", "rule", "trials", "stopped", "used", "saved"])


def share_used(state: State, runs: Sequence[Run]) -> float:
    """Which share of the examples that these runs would have taken to tau they took."""
    spent = float(np.nansum([run.examples for run in runs]))
    return min(1.0, spent / (state.workload.tau * len(runs)))


def outcomes(trials: pd.DataFrame) -> pd.DataFrame:
    """How many trials ended how. Columns arm, phase, outcome ("running" and "waiting" too), trials."""
    shown = trials.assign(
        outcome=trials["outcome"].where(trials["outcome"].notna(), trials["state"].str.lower())
    )
    shown["phase"] = shown["phase"].fillna("planned")
    grouped = shown.groupby(["arm", "phase", "outcome"], sort=False, dropna=False).size()
    return grouped.rename("trials").reset_index()


def failures(trials: pd.DataFrame) -> pd.DataFrame:
    """Every trial that diverged, collapsed or failed, with the reason where one is recorded. Columns arm, phase,
    number, seed, outcome, reason, examples."""
    bad = trials[trials["outcome"].isin(["diverged", "collapsed", "failed"]) | (trials["state"] == "FAIL")]
    columns = ["arm", "phase", "number", "seed", "outcome", "reason", "examples"]
    return bad[columns].assign(outcome=bad["outcome"].fillna("failed")).reset_index(drop=True)


def _stacked(parts: list[pd.DataFrame], columns: list[str]) -> pd.DataFrame:
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=columns)
