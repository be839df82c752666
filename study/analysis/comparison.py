"""From the recorded trials to the answer: the forest table, its notes, and sentences to quote."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd

from study.design.experiment import Experiment
from study.design.workload import Workload
from study.protocol.history import Confirmed, confirmed, joint
from study.protocol.selection import State
from study.statistics.calibration import Calibration
from study.statistics.curves import resolution, targets_reached
from study.statistics.speed_up import (
    Estimate,
    combine_check,
    conditional_ratio,
    paired_difference,
    rmst_ratio,
    simultaneous_interval,
    speed_up,
    throughput_factor,
    units,
    with_cold_start,
    with_throughput,
)
from study.statistics.survival import ert, par2
from study.statistics.verdicts import Verdict, clopper_pearson, holm, unreliable_hits, verdict
from study.store import records
from study.store.store import Store
from study.terms import REFERENCE_ARMS, Outcome, Phase


@dataclass(frozen=True)
class Comparison:
    """All that one experiment's comparison says now."""

    experiment: Experiment
    workload: Workload
    target: float | None
    calibration: Calibration | None
    arms: pd.DataFrame
    """One row an arm, the baseline first; columns as `_row` gives them."""
    combined: pd.DataFrame
    """The combine block's arms, a family of its own; empty without it."""
    addition: Estimate | None
    """Speed-up of the combined arm over the product of its parts."""
    article: pd.DataFrame
    """Per arm: how much sooner it reaches the article's loss."""
    savings: dict[str, float]
    """Shares of training examples saved: `capping` in tuning, `pruning` and patience in search."""
    notes: list[str] = field(default_factory=list)
    """Validity notes."""
    sentences: list[str] = field(default_factory=list)
    """Two or three sentences a person can quote."""


def estimate(store: Store, name: str, n_train: int) -> Comparison:
    """Estimate every arm of an experiment against its baseline, METHOD step 5, from what has been run."""
    spec = store.load_experiment(name)
    assert spec is not None
    experiment = Experiment.from_values(spec["experiment"], f"experiment '{name}'")
    state = State(store, experiment, experiment.workload(n_train))
    state.curves([run for run in state.runs if run.phase == "confirm" and run.outcome is not None])
    arms = _arms(state, records.throughput(store, name))
    combined, addition = _combined(state)
    comparison = Comparison(
        experiment=experiment,
        workload=state.workload,
        target=state.target,
        calibration=state.calibration,
        arms=arms,
        combined=combined,
        addition=addition,
        article=_article(state, arms),
        savings=_savings(state),
    )
    from study.analysis.notes import notes, sentences

    return replace(comparison, notes=notes(comparison, state), sentences=sentences(comparison))


def _arms(state: State, timings: pd.DataFrame) -> pd.DataFrame:
    experiment = state.experiment
    if not experiment.arms:
        return pd.DataFrame()
    baseline = confirmed(state, "baseline", Phase.CONFIRM)
    family = len(experiment.arms)
    rows = [_row(state, "baseline", baseline, baseline, timings, family)]
    for arm in experiment.arms:
        runs = confirmed(state, arm, Phase.CONFIRM)
        rows.append(_row(state, arm, runs, baseline, timings, family))
    for arm in REFERENCE_ARMS:
        runs = confirmed(state, arm, Phase.CONFIRM)
        if runs.runs:
            rows.append(_row(state, arm, runs, baseline, timings, 1))
    frame = pd.DataFrame(rows)
    for unit in ("", "_seconds"):
        in_family = frame["kind"] == "technique"
        adjusted = holm([None if pd.isna(p) else p for p in frame.loc[in_family, f"p{unit}"]])
        frame[f"p_adjusted{unit}"] = np.nan
        frame.loc[in_family, f"p_adjusted{unit}"] = adjusted
    return frame


def _row(
    state: State, arm: str, own: Confirmed, baseline: Confirmed, timings: pd.DataFrame, family: int
) -> dict[str, Any]:
    """One arm's row: counts, speed-ups with intervals and verdicts, and what they rest on."""
    experiment, tau = state.experiment, state.workload.tau
    technique = experiment.technique(arm)
    kind = "baseline" if arm == "baseline" else "technique" if technique else "reference"
    hits, n = int(own.hit.sum()), len(own.runs)
    outcomes = [run.outcome for run in own.runs]
    row: dict[str, Any] = {
        "arm": arm,
        "family": technique.family if technique else kind,
        "kind": kind,
        "different_model": bool(technique and technique.different_model),
        "hits": hits,
        "seeds": n,
        "planned_seeds": experiment.seeds,
        "examples": float(own.E.mean()) if hits else float("nan"),
        "epochs": float(own.E.mean()) / (tau / experiment.budget) if hits else float("nan"),
        "final_loss": float(np.nanmean([run.valid_loss for run in own.runs]))
        if _any_loss(own)
        else float("nan"),
        "diverged": outcomes.count(Outcome.DIVERGED),
        "collapsed": outcomes.count(Outcome.COLLAPSED),
        "failed": outcomes.count(Outcome.FAILED),
        "edges": _edges(state, arm),
        "recipe": own.runs[0].recipe.to_json() if own.runs and own.runs[0].recipe else None,
        "params": json.dumps(own.runs[0].params) if own.runs else None,
        "resolution": _resolution(state, own),
    }
    row["hit_low"], row["hit_high"] = clopper_pearson(hits, n) if n else (0.0, 1.0)
    if n:
        row |= {"par2": par2(own.E, own.hit, tau), "ert": ert(own.E, own.hit, tau)}
    a, b = joint(own, baseline)
    timing = timings[timings["arm"] == arm]
    own_eps = timing["examples_per_second"].to_numpy(dtype=float)
    base_eps = timing["baseline_examples_per_second"].to_numpy(dtype=float)
    if arm == "baseline" or not a.runs:
        return row | {
            "verdict": "baseline" if arm == "baseline" else str(Verdict.NOT_MEASURED),
            "p": np.nan,
            "p_seconds": np.nan,
        }
    # The baseline's blocks: a reference arm has one recipe for all seeds, and is paired with each block.
    at = b.blocks if experiment.blocks > 1 else None
    E = speed_up(units(b.E, at), units(a.E, at))
    row |= _columns(E, "", family)
    if not (a.hit.all() and b.hit.all()):
        # METHOD: no plain ratio once a run is censored.
        row |= _columns(_blank(E), "", family)
    row["verdict"] = _worded(verdict(E, a.hit, b.hit, family=family, margin=experiment.margin), a.hit, b.hit)
    row |= _named("conditional", conditional_ratio(b.E, b.hit, a.E, a.hit, at))
    row |= _named("rmst", rmst_ratio(b.E, b.hit, a.E, a.hit, float(tau), at))
    difference = paired_difference(b.test, a.test)
    row |= {
        "test_difference": difference.mean,
        "test_low": difference.low,
        "test_high": difference.high,
        "test_worse": bool(difference.low > 0),
    }
    if not len(own_eps):
        return row | {"verdict_seconds": str(Verdict.NOT_MEASURED), "p_seconds": np.nan}
    r = throughput_factor(own_eps, base_eps)
    seconds = with_throughput(E, r.theta, r.se, r.df)
    row |= _named("throughput", r) | {"examples_per_second": float(np.median(own_eps)), "timing_pairs": r.n}
    row["cold_start_seconds"] = float(timing["cold_start_seconds"].median())
    censored = not (a.hit.all() and b.hit.all())
    row |= _columns(_blank(seconds) if censored else seconds, "_seconds", family)
    row["verdict_seconds"] = _worded(
        verdict(seconds, a.hit, b.hit, family=family, margin=experiment.margin), a.hit, b.hit
    )
    if not censored:
        cold = with_cold_start(
            units(b.E, at), units(a.E, at), base_eps, own_eps, 0.0, row["cold_start_seconds"]
        )
        row |= _named("cold", cold)
    return row


def _worded(word: Verdict, arm_hit: np.ndarray, baseline_hit: np.ndarray) -> str:
    """The verdict with the seeds that reach the target where some don't."""
    return f"{word} ({unreliable_hits(arm_hit, baseline_hit)})" if word is Verdict.UNRELIABLE else str(word)


def _columns(e: Estimate, unit: str, family: int) -> dict[str, Any]:
    low, high = simultaneous_interval(e, family)
    return {
        f"speed_up{unit}": e.ratio,
        f"low{unit}": e.low,
        f"high{unit}": e.high,
        f"simultaneous_low{unit}": low,
        f"simultaneous_high{unit}": high,
        f"se{unit}": e.se,
        f"units{unit}": e.n,
        f"p{unit}": e.p,
        f"no_interval{unit}": e.reason,
    }


def _named(name: str, e: Estimate) -> dict[str, Any]:
    return {name: e.ratio, f"{name}_low": e.low, f"{name}_high": e.high}


def _blank(e: Estimate) -> Estimate:
    nan = float("nan")
    return Estimate(nan, nan, nan, nan, nan, nan, e.n, nan, "censored runs: no plain ratio")


def _any_loss(own: Confirmed) -> bool:
    return any(np.isfinite(run.valid_loss) for run in own.runs)


def _resolution(state: State, own: Confirmed) -> float:
    """How wide, relatively, the grid cell of the arm's hit is: 0.03, or one step where that is longer."""
    hits = [(run, E) for run, E, hit in zip(own.runs, own.E, own.hit, strict=True) if hit]
    if not hits:
        return float("nan")
    (curve,) = state.curves([hits[0][0]])
    return resolution(curve.examples, float(hits[0][1]))


def _edges(state: State, arm: str) -> str:
    """Tuned fields whose winning value lies at an end of its range: "lr high" and the like."""
    experiment = state.experiment
    technique = experiment.technique(arm)
    found: list[str] = []
    if arm != "baseline" and technique is None:
        return ""
    shared, own = experiment.spaces(arm, state.workload)
    for block in range(1, experiment.blocks + 1):
        best = state.winner(arm, block)
        for name, dimension in (shared | own).items():
            edge = dimension.edge(best.params[name]) if best is not None and name in best.params else None
            if edge:
                found.append(f"{name} {edge}")
    return ", ".join(dict.fromkeys(found))


def _combined(state: State) -> tuple[pd.DataFrame, Estimate | None]:
    """Step 6 from the combine block alone: each arm's speed-up, and whether the parts add up."""
    experiment = state.experiment
    names = list(dict.fromkeys(run.arm for run in state.runs if run.phase == Phase.COMBINE))
    if "combined" not in names:
        return pd.DataFrame(), None
    runs = {arm: confirmed(state, arm, Phase.COMBINE) for arm in names}
    shared = sorted(set.intersection(*(set(run.index) for run in runs.values())))
    if not shared:
        return pd.DataFrame(), None
    at = {arm: [run.index.index(i) for i in shared] for arm, run in runs.items()}
    E = {arm: runs[arm].E[at[arm]] for arm in names}
    hit = {arm: runs[arm].hit[at[arm]] for arm in names}
    family = len(names) - 1
    rows = []
    for arm in names:
        if arm == "baseline":
            continue
        whole = bool(hit[arm].all() and hit["baseline"].all())
        e = speed_up(E["baseline"], E[arm])
        row = {"arm": arm, "hits": int(hit[arm].sum()), "seeds": len(shared)}
        row |= _columns(e if whole else _blank(e), "", family)
        word = verdict(e, hit[arm], hit["baseline"], family=family, margin=experiment.margin)
        row["verdict"] = _worded(word, hit[arm], hit["baseline"])
        rows.append(row)
    frame = pd.DataFrame(rows)
    frame["p_adjusted"] = holm([None if pd.isna(p) else p for p in frame["p"]])
    singles = [arm for arm in names if arm in experiment.arms]
    if not all(hit[arm].all() for arm in ("baseline", "combined", *singles)):
        return frame, None
    return frame, combine_check(E["baseline"], [E[arm] for arm in singles], E["combined"])


def _article(state: State, arms: pd.DataFrame) -> pd.DataFrame:
    """Per arm, examples to the loss that the article's recipe has at tau, and how much sooner that is.

    The target is the article runs' median loss at tau, taken as known: its own examples are tau. Empty where one
    was stopped at the target, for then its loss at tau isn't known; where all missed it, every other curve goes
    on at least to the article's loss or to tau."""
    experiment, tau = state.experiment, state.workload.tau
    article = state.of("article", Phase.CONFIRM)
    runs = [run for run in article if run.outcome == "completed"]
    if not runs or any(run.outcome == "hit" for run in article):
        return pd.DataFrame()
    loss = float(np.median([run.valid_loss for run in runs]))
    timing = arms.set_index("arm")
    rows = []
    for arm in arms["arm"]:
        own = [run for run in state.of(arm, Phase.CONFIRM) if run.outcome is not None]
        E, hit = targets_reached(state.curves(own), loss)
        if not own or arm == "article":
            continue
        tuned = experiment.blocks > 1 and arm not in REFERENCE_ARMS
        at = np.array([run.block for run in own]) if tuned else None
        row = {"arm": arm, "loss": loss, "hits": int(hit.sum()), "seeds": len(own)}
        if hit.all():
            sooner = speed_up(units(np.full(len(E), float(tau)), at), units(E, at))
            speed = _ratio(timing, arm) / _ratio(timing, "article")
            row |= {"examples": float(E.mean()), "sooner_seconds": sooner.ratio * speed}
            row |= _named("sooner", sooner)
        rows.append(row)
    return pd.DataFrame(rows)


def _ratio(timing: pd.DataFrame, arm: str) -> float:
    """Throughput of an arm over the baseline; 1 for the baseline, NaN where it wasn't timed."""
    if arm == "baseline":
        return 1.0
    return float(timing["throughput"].to_dict()[arm]) if "throughput" in timing else float("nan")


def _savings(state: State) -> dict[str, float]:
    savings = {}
    capped = [run for run in state.runs if run.assignment.capped and run.outcome is not None]
    searched = [run for run in state.runs if run.phase == "search" and run.outcome is not None]
    for key, runs in (("capping", capped), ("pruning", searched)):
        if runs:
            spent = float(np.nansum([run.examples for run in runs]))
            savings[key] = max(0.0, 1.0 - spent / (state.workload.tau * len(runs)))
    return savings
