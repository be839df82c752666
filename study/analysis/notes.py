"""The answer in words: sentences to quote, and the notes that say how far to trust them."""

from __future__ import annotations

import math
from collections.abc import Hashable
from typing import TYPE_CHECKING, Any

import pandas as pd

from study.protocol.selection import State
from study.statistics.verdicts import Verdict, smallest_n

if TYPE_CHECKING:
    from study.analysis.comparison import Comparison
from study.terms import Phase


def p_value(p: float) -> str:
    """A p-value in words: three decimals, never a plain 0; a dash where there is none."""
    return "–" if math.isnan(p) else "< 0.001" if p < 0.001 else f"{p:.3f}"


def ratio(value: float, low: float, high: float) -> str:
    """A ratio with its interval, e.g. "1.42x [1.28, 1.59]"; a dash without a value."""
    if math.isnan(value):
        return "–"
    interval = f" [{low:.2f}, {high:.2f}]" if not math.isnan(low) else " [no interval]"
    return f"{value:.2f}x{interval}"


def sentences(comparison: Comparison) -> list[str]:
    """Two or three sentences with figures, intervals, seeds and censoring."""
    arms = comparison.arms
    if arms.empty or "speed_up" not in arms:
        return ["Nothing has been compared yet."]
    family = arms[arms["kind"] == "technique"]
    measured = family[family["speed_up"].notna()]
    said = [_best(comparison, measured)]
    faster, open_, slower = (
        int((family["verdict"] == word).sum()) for word in (Verdict.FASTER, Verdict.UNDECIDED, Verdict.SLOWER)
    )
    pending = int((family["verdict"] == Verdict.NOT_MEASURED).sum())
    other = len(family) - faster - open_ - slower - pending
    unmeasured = f", {pending} {_be(pending)} not measured yet" if pending else ""
    said.append(
        f"Of {len(family)} techniques {faster} {_be(faster)} faster in examples, "
        f"{open_} not distinguishable from the baseline, {slower} slower{unmeasured}, and {other} "
        f"{'does' if other == 1 else 'do'} not reach the target on every seed (margin "
        f"{comparison.experiment.margin:.0%}, simultaneous 95 % intervals{_scope(comparison)})."
    )
    if not comparison.combined.empty:
        said += _together(comparison)
    if not comparison.article.empty:
        said += _article(comparison)
    return said


def _best(comparison: Comparison, measured: pd.DataFrame) -> str:
    experiment, target = comparison.experiment, comparison.target
    faster = measured[measured["verdict"] == Verdict.FASTER]
    if measured.empty or target is None:
        return f"On {experiment.data} no technique has a speed-up to report yet."
    if faster.empty:
        return (
            f"On {experiment.data} no technique is distinguishably faster than the tuned baseline in reaching a "
            f"validation loss of {target:.2f} nats."
        )
    best = max(faster.to_dict("records"), key=lambda row: float(row["speed_up"]))
    seconds = ""
    if not pd.isna(best.get("speed_up_seconds")):
        shown = ratio(best["speed_up_seconds"], best["low_seconds"], best["high_seconds"])
        seconds = f", and {shown} in seconds"
    return (
        f"On {experiment.data}, {best['arm']} reaches a validation loss of {target:.2f} nats "
        f"{ratio(best['speed_up'], best['low'], best['high'])} sooner in examples than the tuned baseline"
        f"{seconds} ({best['seeds']} paired seeds, {best['seeds'] - best['hits']} censored)."
    )


def _article(comparison: Comparison) -> list[str]:
    """How much sooner the best arm has the article's loss; the baseline where no arm stands out."""
    table = comparison.article
    if "sooner" not in table:
        return []
    arms = comparison.arms
    faster = arms[arms["verdict"] == Verdict.FASTER]
    fastest = max(faster.to_dict("records"), key=lambda row: float(row["speed_up"]), default=None)
    arm = "baseline" if fastest is None else str(fastest["arm"])
    row = next((row for row in table.to_dict("records") if row["arm"] == arm), None)
    if row is None or math.isnan(row["sooner"]):
        return []
    seconds = row["sooner_seconds"]
    time = "" if math.isnan(seconds) else f" and 1/{seconds:.1f} of the time"
    interval = (
        "" if math.isnan(row["sooner_low"]) else f" [1/{row['sooner_low']:.1f}, 1/{row['sooner_high']:.1f}]"
    )
    who = "the tuned baseline" if arm == "baseline" else arm
    return [
        f"The loss that the article's recipe has after {_epochs(comparison.experiment.budget)} ({row['loss']:.2f} "
        f"nats) is reached by {who} in 1/{row['sooner']:.1f}{interval} of the examples{time} "
        f"({int(row['seeds'])} seeds, 0 censored)."
    ]


def _together(comparison: Comparison) -> list[str]:
    """Whether the combined arm's parts add up, and whether one of them is better left out."""
    rows = {str(row["arm"]): row for row in comparison.combined.to_dict("records")}
    combined, addition = rows.get("combined"), comparison.addition
    if combined is None or math.isnan(combined["speed_up"]) or addition is None:
        return []
    parts = [arm for arm in rows if not arm.startswith("combined")]
    if math.isnan(addition.low):
        sum_up = "not enough seeds to judge that"
    elif addition.high < 1.0:
        sum_up = "they gain less than that"
    else:
        sum_up = "they gain more than that" if addition.low > 1.0 else "not distinguishable from it"
    said = (
        f"Together {', '.join(parts[:-1])} and {parts[-1]} are {_shown(combined)} as fast in examples "
        f"({combined['seeds']} fresh seeds, {combined['seeds'] - combined['hits']} censored), "
        f"{ratio(addition.ratio, addition.low, addition.high)} of the product of their own speed-ups: {sum_up}"
    )
    better = [row for row in rows.values() if row["low"] > combined["high"]]
    if better:
        best = max(better, key=lambda row: float(row["speed_up"]))
        left_out = str(best["arm"]).removeprefix("combined-without-")
        said += f". {'Without ' if left_out != best['arm'] else 'Alone '}{left_out} it is {_shown(best)}"
    return [f"{said}."]


def _shown(row: dict[Hashable, Any]) -> str:
    return ratio(row["speed_up"], row["low"], row["high"])


def notes(comparison: Comparison, state: State) -> list[str]:
    """Validity notes: what a careful reader would ask about, in the order of how much it matters."""
    experiment, calibration, arms = comparison.experiment, comparison.calibration, comparison.arms
    if arms.empty:
        return []
    found: list[str] = []
    unfinished = arms[arms["seeds"] < arms["planned_seeds"]]
    if not unfinished.empty:
        found.append(f"Unfinished: {', '.join(unfinished['arm'])} lack confirmation runs.")
    if experiment.blocks == 1:
        found.append(
            "Every interval is for the tuned recipes (R = 1): the luck of tuning itself is not in it. "
            "--blocks 5 puts it in."
        )
    if calibration is not None:
        if calibration.plateau:
            found.append(
                f"Target on a plateau: examples to target vary by {calibration.spread:.0%} between calibration seeds "
                f"(slope {calibration.slope:.2f} nats per doubling)."
            )
        if calibration.raised:
            found.append(
                "A calibration seed missed the median target; it was raised to the worst seed's loss."
            )
        if calibration.diverged:
            found.append(f"{calibration.diverged} calibration runs diverged.")
    found += _reference(state)
    found += _too_few(comparison)
    found += _never_tuned(comparison, state)
    edges = arms[arms["edges"].astype(bool)]
    if not edges.empty:
        listed = "; ".join(f"{row.arm} ({row.edges})" for row in edges.itertuples())
        found.append(f"Winners on an edge of their space, which a wider one might beat: {listed}.")
    for column, word in (
        ("diverged", "diverged"),
        ("collapsed", "collapsed (KL near 0)"),
        ("failed", "failed"),
    ):
        some = arms[arms[column] > 0]
        if not some.empty:
            listed = ", ".join(
                f"{row['arm']} {row[column]} of {row['seeds']}" for row in some.to_dict("records")
            )
            found.append(f"Confirmation runs that {word}: {listed}.")
    lost = [
        run for run in state.runs if run.phase in ("tune", "final") and run.outcome in ("diverged", "failed")
    ]
    if lost:
        counts = pd.Series([run.arm for run in lost]).value_counts()
        found.append(
            "Tuning trials that diverged or failed: " + ", ".join(f"{a} {n}" for a, n in counts.items()) + "."
        )
    if "test_worse" in arms:
        worse = arms[arms["test_worse"].fillna(False).astype(bool)]
        for row in worse.to_dict("records"):
            found.append(
                f"{row['arm']} is worse on the test split at its hit: {row['test_difference']:+.2f} nats "
                f"[{row['test_low']:+.2f}, {row['test_high']:+.2f}] against the baseline."
            )
    for row in arms[arms["resolution"] > 0.06].to_dict("records"):
        if math.isinf(row["resolution"]):
            found.append(
                f"{row['arm']} reaches the target before its first evaluation: its E is an upper bound."
            )
        else:
            found.append(
                f"{row['arm']}: one step is {row['resolution']:.0%} of its examples to target; E is no finer."
            )
    different = arms[arms["different_model"]]
    if not different.empty:
        found.append(f"Different model, not only different training: {', '.join(different['arm'])}.")
    if "throughput_low" in arms:
        noisy = arms[(arms["throughput_high"] / arms["throughput_low"]) > 1.15]
        if not noisy.empty:
            found.append(f"Noisy timing, throughput interval wider than 15 %: {', '.join(noisy['arm'])}.")
    if experiment.recipe.likelihood == "cross_entropy":
        found.append(
            "Cross-entropy on values between 0 and 1 is no likelihood: nats compare recipes here, not with other "
            "papers."
        )
    return found


def _reference(state: State) -> list[str]:
    """Whether the search has found a better recipe than the one that was confirmed as its best."""
    best, confirmed = state.search_winner, state.of("search-best", Phase.CONFIRM)
    if best is None or best.recipe is None or not confirmed:
        return []
    if confirmed[0].assignment.base == best.recipe:
        return []
    return [
        f"search-best was confirmed before the search was topped up: trial {best.number} is better by now. Under "
        "another --name it would be confirmed."
    ]


def _never_tuned(comparison: Comparison, state: State) -> list[str]:
    """Arms that miss the target and whose tuning met no point that reaches it safely: more points might."""
    experiment, arms = comparison.experiment, comparison.arms
    missed = []
    for arm in arms[arms["hits"] < arms["seeds"]]["arm"]:
        if arm not in experiment.arms:
            continue
        winners = [state.winner(arm, block) for block in range(1, experiment.blocks + 1)]
        # The winner has the fewest misses: where it has one, so has every other point.
        tuned = [[best, *(state.finals(best) or [])] for best in winners if best is not None]
        if any(not run.hit for runs in tuned for run in runs):
            missed.append(arm)
    if not missed:
        return []
    on_all = " on each of its seeds" if experiment.has_finalists else ""
    return [
        f"Tuning found no point that reaches the tuning target{on_all} for {', '.join(missed)}: with more than "
        f"K = {experiment.tune_trials} points it might, so their misses are no verdict on the technique."
    ]


def _too_few(comparison: Comparison) -> list[str]:
    """Whether the seeds could have decided at all, and how many would."""
    arms, family = comparison.arms, len(comparison.experiment.arms)
    if "se" not in arms:
        return []
    undecided = arms[(arms["kind"] == "technique") & (arms["verdict"] == Verdict.UNDECIDED)]
    none = undecided[undecided["no_interval"].notna()]
    found = []
    if not none.empty:
        found.append(
            f"No interval: {'; '.join(sorted(set(none['no_interval'])))} ({', '.join(none['arm'])})."
        )
    spread = undecided[undecided["no_interval"].isna()]
    if spread.empty:
        return found
    sd = float((spread["se"] * spread["units"] ** 0.5).median())
    n = smallest_n(sd, family=family, margin=comparison.experiment.margin)
    have = int(spread["units"].median())
    if n is not None and n > have:
        unit = "blocks" if comparison.experiment.blocks > 1 else "seeds"
        found.append(
            f"{have} {unit} are few for the arms left open: about {n} would bring the simultaneous interval's "
            f"half-width down to the margin of {comparison.experiment.margin:.0%}."
        )
    return found


def _scope(comparison: Comparison) -> str:
    return (
        ", for the tuned recipes"
        if comparison.experiment.blocks == 1
        else f", {comparison.experiment.blocks} blocks"
    )


def _epochs(budget: float) -> str:
    return f"{budget:g} epoch{'' if budget == 1 else 's'}"


def _be(n: int) -> str:
    return "is" if n == 1 else "are"
