"""Frames behind the comparison's figures: runs and curves in, one tidy frame out. Nothing is drawn here.

Losses are nats per example, examples are training examples seen, seconds are examples over the throughput that
was measured apart. `curves` maps a trial's id to its recorded curve.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pandas as pd

from study.analysis.comparison import could_be_stopped, share_used
from study.analysis.words import changes
from study.design.space import Dimension, Space
from study.protocol.guided import Guided
from study.protocol.history import Run
from study.protocol.selection import State
from study.statistics.curves import Curve, median_and_band
from study.statistics.response import SOFT, Response
from study.statistics.speed_up import speed_up_by_target
from study.statistics.survival import kaplan_meier
from study.terms import BASELINE, Outcome, Phase

Curves = Mapping[int, Curve]

#: Target levels at which the speed-up is estimated.
TARGETS = 25


def confirmed(state: State, arm: str) -> list[Run]:
    """The arm's finished confirmation runs, by seed index."""
    return [run for run in state.of(arm, Phase.CONFIRM) if run.outcome is not None]


def bands(recorded: Mapping[str, Sequence[Curve]], speed: Mapping[str, float]) -> pd.DataFrame:
    """Median and middle 80 % of the validation loss over an arm's seeds at each evaluation.

    Columns arm, examples, seconds (NaN where the arm was not timed), median, low, high."""
    parts = []
    for arm, of_arm in recorded.items():
        if not of_arm:
            continue
        band = median_and_band(of_arm)
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


Paired = tuple[Sequence[Curve], Sequence[Curve], Sequence[int] | None]
"""The baseline's curves, an arm's on the same seeds, and the seeds' blocks where there are several."""


def paired_curves(state: State, runs: Mapping[str, Sequence[Run]], curves: Curves) -> dict[str, Paired]:
    """Each arm's recorded curves beside the baseline's, on the seeds of both."""
    baseline = {run.index: run for run in runs.get(BASELINE, []) if run.trial_id in curves}
    found: dict[str, Paired] = {}
    for arm, own in runs.items():
        pairs = [
            (baseline[run.index], run) for run in own if run.index in baseline and run.trial_id in curves
        ]
        if arm != BASELINE and pairs:
            found[arm] = (
                [curves[run.trial_id] for run, _ in pairs],
                [curves[run.trial_id] for _, run in pairs],
                [run.block for run, _ in pairs] if state.experiment.blocks > 1 else None,
            )
    return found


_BY_TARGET = ["arm", "target", "speed_up", "low", "high", "baseline_hits", "arm_hits", "seeds"]


def by_target(
    baseline: Sequence[Curve],
    arms: Mapping[str, Paired],
    tau: float,
    *,
    paired: bool = True,
    lowest: float = -math.inf,
    until: float = math.inf,
) -> pd.DataFrame:
    """The speed-up in examples at other targets, from the baseline's loss at a tenth of tau down to the lowest
    that all its seeds reach by `until`, but no further than to `lowest`: where runs end at a target, what they would
    have reached below it isn't known. The recipes stay those tuned at the main target.

    Columns arm, target, speed_up, low, high, baseline_hits, arm_hits, seeds."""
    ends = [curve.best(until) for curve in baseline]
    starts = [curve.best(0.1 * tau) for curve in baseline]
    if not ends or not np.isfinite([*ends, *starts]).all():
        return pd.DataFrame(columns=_BY_TARGET)
    first, last = float(np.median(starts)), max(*ends, lowest)
    if last >= first:
        return pd.DataFrame(columns=_BY_TARGET)
    return at_targets(arms, np.linspace(first, last, TARGETS).tolist(), paired=paired, until=until)


def at_targets(
    arms: Mapping[str, Paired], targets: Sequence[float], *, paired: bool = True, until: float = math.inf
) -> pd.DataFrame:
    """The speed-up of each arm at these targets; columns as `by_target`."""
    rows = []
    for arm, (before, after, blocks) in arms.items():
        for at in speed_up_by_target(before, after, targets, blocks, paired=paired, until=until):
            e = at.estimate
            values = (arm, at.target, e.ratio, e.low, e.high, at.baseline_hits, at.arm_hits, at.seeds)
            rows.append(dict(zip(_BY_TARGET, values, strict=True)))
    return pd.DataFrame(rows, columns=_BY_TARGET)


def tuning(state: State, arms: Sequence[str], curves: Curves) -> pd.DataFrame:
    """One row a finished tuning trial, the guided ones after the coarse. Columns arm, block, phase, point (from 1, in
    the order they were planned), number, outcome, hit, examples (to the target on a hit; else as far as it ran), best
    (fewest examples so far in this block; NaN before a hit), recipe, won (by method 2 no trial: what is confirmed is
    the vertex, which need not have been trained). Empty while there is no target."""
    columns = [
        "arm", "block", "phase", "point", "number", "outcome", "hit", "examples", "best", "recipe", "won",
    ]  # fmt: skip
    rows = []
    for arm in arms if state.target is not None else ():
        for block in range(1, state.experiment.blocks + 1):
            won = None if state.experiment.guided else state.winner(arm, block)
            best = np.nan
            for point, run in enumerate(_tuning_runs(state, arm, block), start=1):
                if run.outcome is None:
                    continue
                E, hit = _reached(run, curves, state)
                best = np.nanmin([best, E]) if hit else best
                recipe = changes(run.recipe, state.experiment.recipe)
                is_winner = won is not None and won.trial_id == run.trial_id
                values = (
                    arm, block, run.phase, point, run.number, run.outcome, hit, E, best, recipe, is_winner,
                )  # fmt: skip
                rows.append(dict(zip(columns, values, strict=True)))
    return pd.DataFrame(rows, columns=columns)


def _tuning_runs(state: State, arm: str, block: int) -> list[Run]:
    """The coarse points, then the guided rounds, each in the order of its plan."""
    return [
        run
        for phase in (Phase.TUNE, Phase.GUIDED)
        for run in sorted(state.of(arm, phase, block), key=lambda run: run.index)
    ]


def _reached(run: Run, curves: Curves, state: State) -> tuple[float, bool]:
    """Examples to target and True, or the examples that the run lasted and False; from the curve, since the
    baseline's first block ran before there was a target."""
    from study.statistics.curves import examples_to_target

    curve, target = curves.get(run.trial_id), state.target
    if curve is None or target is None:
        return float("nan"), False
    E, hit = examples_to_target(curve.examples, curve.valid_loss, target)
    return (E, True) if hit else (float(curve.examples[-1]), False)


def winners(state: State, arms: Sequence[str]) -> pd.DataFrame:
    """Where tuning points lie in their arm's space. Columns arm, field, block, value, position (0..1 of the
    range, log where the range is), low, high, won; numeric dimensions only.

    By method 2 the winner is a row of its own, for it is the response's vertex and no trial, and the range is the
    widest that guided tuning came to in any block."""
    columns = ["arm", "field", "block", "value", "position", "low", "high", "won"]
    rows = []
    for arm in arms:
        found = {block: state.tuned(arm, block) for block in range(1, state.experiment.blocks + 1)}
        spaces = [tuned.space for tuned in found.values() if tuned is not None]
        for block, tuned in found.items():
            if tuned is None:
                continue
            runs = _tuning_runs(state, arm, block)
            points = [(run.params, False) for run in runs] + [(tuned.params, True)]
            if not state.experiment.guided:
                won = state.winner(arm, block)
                points = [(run.params, won is not None and run.trial_id == won.trial_id) for run in runs]
            for params, is_winner in points:
                for field, dimension in _widest(spaces).items():
                    if field not in params or dimension.low is None or dimension.high is None:
                        continue
                    value = float(params[field])
                    at = position(dimension, value)
                    values = (arm, field, block, value, at, dimension.low, dimension.high, is_winner)
                    rows.append(dict(zip(columns, values, strict=True)))
    return pd.DataFrame(rows, columns=columns)


def _widest(spaces: Sequence[Space]) -> Space:
    """The same dimensions, each from its lowest low to its highest high."""
    widest = dict(spaces[0])
    for space in spaces[1:]:
        for field, dimension in space.items():
            known = widest[field]
            if known.low is None or known.high is None or dimension.low is None or dimension.high is None:
                continue
            low, high = min(known.low, dimension.low), max(known.high, dimension.high)
            widest[field] = Dimension(low=low, high=high, log=known.log)
    return widest


def response_runs(state: State, arms: Sequence[str]) -> pd.DataFrame:
    """The runs behind each arm's response curves (method 2), a row a run and axis. Columns arm, block, field, round (0:
    the coarse points), value (recipe units), behind (y of the response: softened e-folds of examples behind the best
    run at E0) and e_folds (the same unsoftened, at most 50)."""
    columns = ["arm", "block", "field", "round", "value", "behind", "e_folds"]
    rows = []
    for arm, block, guided, response in _responses(state, arms):
        for k, field in enumerate(guided.fields):
            for point, y, number in zip(response.points, response.y, response.seeds, strict=True):
                value = _recipe_value(guided.space, field, float(point[k]))
                e_folds = SOFT * math.expm1(float(y) / SOFT)
                values = (arm, block, field, int(number), value, float(y), e_folds)
                rows.append(dict(zip(columns, values, strict=True)))
    return pd.DataFrame(rows, columns=columns)


def responses(state: State, arms: Sequence[str]) -> pd.DataFrame:
    """Each arm's response along each axis through its vertex (method 2), 81 rows an axis. Columns arm, block, field,
    value (recipe units), mean, low, high (95 % of the process, softened e-folds as `response_runs` has them), vertex
    and vertex_mean (what is confirmed, and how far behind it lies), edge ("low", "high" or ""), first_low, first_high
    (the range before it was widened), log (whether the range is), E0 (examples at which the runs are compared)."""
    parts = []
    for arm, block, guided, response in _responses(state, arms):
        shared, own = state.experiment.spaces(arm, state.workload)
        first = shared | own
        vertex_mean = float(response.mean(response.vertex[None, :])[0])
        for k, field in enumerate(guided.fields):
            line = response.line(k)
            mean = response.mean(line)
            half = Z95 * np.sqrt(np.maximum(np.diag(response.covariance(line)), 0.0))
            part = pd.DataFrame({"arm": arm, "block": block, "field": field, "mean": mean})
            part["value"] = [_recipe_value(guided.space, field, float(at)) for at in line[:, k]]
            part["low"], part["high"] = mean - half, mean + half
            part["vertex"], part["vertex_mean"] = float(guided.params[field]), vertex_mean
            part["edge"] = response.axes[k].edge(float(response.vertex[k])) or ""
            part["first_low"], part["first_high"] = first[field].low, first[field].high
            part["log"], part["E0"] = field == "lr" or first[field].log, guided.where.examples
            parts.append(part)
    return _stacked(parts, _RESPONSES)


_RESPONSES = [
    "arm", "block", "field", "mean", "value", "low", "high", "vertex", "vertex_mean", "edge", "first_low", "first_high",
    "log", "E0",
]  # fmt: skip
#: Of a normal distribution's middle 95 %.
Z95 = 1.96


def _responses(state: State, arms: Sequence[str]) -> Iterator[tuple[str, int, Guided, Response]]:
    """The arms and blocks whose guided tuning has ended with a response."""
    for arm in arms if state.experiment.guided else ():
        for block in range(1, state.experiment.blocks + 1):
            found = state.guided(arm, block)
            if isinstance(found, Guided) and found.response is not None:
                yield arm, block, found, found.response


def _recipe_value(space: Space, field: str, at: float) -> float:
    """A coordinate of the response in the recipe's own units."""
    return 10.0**at if field == "lr" else float(space[field].at(field, at))


def position(dimension: Dimension, value: float) -> float:
    """Where a value lies between the ends of a numeric dimension: 0 at low, 1 at high, on its own scale."""
    assert dimension.low is not None
    assert dimension.high is not None
    if dimension.log:
        return float(np.log(value / dimension.low) / np.log(dimension.high / dimension.low))
    return (value - dimension.low) / (dimension.high - dimension.low)


def savings(state: State) -> pd.DataFrame:
    """What stopping early saved, by arm. Columns part, rule, trials, stopped, used, saved (shares of the examples
    that these trials would have taken to tau); only parts in which trials could be stopped, and of them only
    those that didn't break down by themselves."""
    groups: dict[tuple[str, str], list[Run]] = {}
    for run in state.runs:
        if not could_be_stopped(run):
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


def outcomes(trials: pd.DataFrame) -> pd.DataFrame:
    """How many trials ended how. Columns arm, phase, outcome ("running" and "waiting" too), trials."""
    shown = trials.assign(outcome=ends(trials))
    shown["phase"] = shown["phase"].fillna("planned")
    grouped = shown.groupby(["arm", "phase", "outcome"], sort=False, dropna=False).size()
    return grouped.rename("trials").reset_index()


def ends(trials: pd.DataFrame) -> pd.Series:
    """How each trial ended, or its state before that. One that Optuna holds for failed without a word of ours has
    failed too: no two names for one end."""
    state = trials["state"].str.lower().replace("fail", str(Outcome.FAILED))
    return trials["outcome"].where(trials["outcome"].notna(), state)


def failures(trials: pd.DataFrame) -> pd.DataFrame:
    """Every trial that diverged, collapsed or failed, with the reason where one is recorded. Columns arm, phase,
    number, seed, outcome, reason, examples."""
    bad = trials[trials["outcome"].isin(["diverged", "collapsed", "failed"]) | (trials["state"] == "FAIL")]
    columns = ["arm", "phase", "number", "seed", "outcome", "reason", "examples"]
    return bad[columns].assign(outcome=bad["outcome"].fillna("failed")).reset_index(drop=True)


def _stacked(parts: list[pd.DataFrame], columns: list[str]) -> pd.DataFrame:
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=columns)
