"""The exported tables of arms: the only place where a result is columns."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import pandas as pd

from study.analysis.arm import ArmResult, ArticleArm, CombinedArm, Measure
from study.statistics.speed_up import Estimate
from study.statistics.verdicts import Verdict
from study.terms import Outcome


def to_frame(arms: Sequence[ArmResult]) -> pd.DataFrame:
    """One row an arm, in the order given; a column that no arm has is left out."""
    frame = pd.DataFrame([_columns(arm) for arm in arms])
    for unit, measures in (("", [arm.examples for arm in arms]), ("_seconds", [arm.seconds for arm in arms])):
        if arms:
            frame[f"p_adjusted{unit}"] = [_number(m.p_adjusted if m is not None else None) for m in measures]
    return frame


def combined_frame(arms: Sequence[CombinedArm]) -> pd.DataFrame:
    """One row an arm of the combine block."""
    frame = pd.DataFrame(
        [
            {"arm": arm.arm, "hits": arm.hits, "seeds": arm.seeds}
            | _measure(arm.examples)
            | {"verdict": arm.examples.words}
            for arm in arms
        ]
    )
    if arms:
        frame["p_adjusted"] = [_number(arm.examples.p_adjusted) for arm in arms]
    return frame


def article_frame(arms: Sequence[ArticleArm]) -> pd.DataFrame:
    """One row an arm that has finished confirmation runs."""
    rows = []
    for arm in arms:
        row: dict[str, Any] = {"arm": arm.arm, "loss": arm.loss, "hits": arm.hits, "seeds": arm.seeds}
        if arm.sooner is not None:
            row |= {"examples": arm.mean_examples, "sooner_seconds": _number(arm.sooner_seconds)}
            row |= _ratio("sooner", arm.sooner)
        rows.append(row)
    return pd.DataFrame(rows)


def _columns(arm: ArmResult) -> dict[str, Any]:
    low, high = arm.hit_interval
    row: dict[str, Any] = {
        "arm": arm.arm,
        "family": arm.family,
        "kind": str(arm.kind),
        "different_model": arm.different_model,
        "hits": arm.hits,
        "seeds": arm.seeds,
        "planned_seeds": arm.planned_seeds,
        "examples": _number(arm.mean_examples),
        "epochs": _number(arm.epochs),
        "final_loss": _number(arm.final_loss),
        "diverged": arm.ended.get(Outcome.DIVERGED, 0),
        "collapsed": arm.ended.get(Outcome.COLLAPSED, 0),
        "failed": arm.ended.get(Outcome.FAILED, 0),
        "edges": ", ".join(arm.edges),
        "recipe": arm.recipe.to_json() if arm.recipe is not None else None,
        "params": json.dumps(arm.params) if arm.params is not None else None,
        "resolution": _number(arm.resolution),
        "hit_low": low,
        "hit_high": high,
    }
    if arm.seeds:
        row |= {"par2": arm.par2, "ert": arm.ert}
    if arm.examples is None or not arm.measured:
        return row | {
            "verdict": str(arm.kind if arm.is_baseline else Verdict.NOT_MEASURED),
            "p": math.nan,
            "p_seconds": math.nan,
        }
    row |= _measure(arm.examples) | {"verdict": arm.examples.words}
    row |= _ratio("conditional", arm.conditional) | _ratio("rmst", arm.rmst)
    if arm.test is not None:
        row |= {"test_difference": arm.test.mean, "test_low": arm.test.low, "test_high": arm.test.high}
        row |= {"test_worse": arm.test_worse}
    if arm.throughput is None or arm.seconds is None:
        return row | {"verdict_seconds": str(Verdict.NOT_MEASURED), "p_seconds": math.nan}
    row |= _ratio("throughput", arm.throughput)
    row |= {"examples_per_second": arm.examples_per_second, "timing_pairs": arm.throughput.n}
    row["cold_start_seconds"] = arm.cold_start_seconds
    row |= _measure(arm.seconds, "_seconds") | {"verdict_seconds": arm.seconds.words}
    return row | (_ratio("cold", arm.cold) if arm.cold is not None else {})


def _measure(measure: Measure, unit: str = "") -> dict[str, Any]:
    e, (low, high) = measure.estimate, measure.simultaneous
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


def _ratio(name: str, e: Estimate | None) -> dict[str, Any]:
    return {} if e is None else {name: e.ratio, f"{name}_low": e.low, f"{name}_high": e.high}


def _number(value: float | None) -> float:
    return math.nan if value is None else value
