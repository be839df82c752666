"""Tables for the terminal."""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING, Any

import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table

from study.analysis.comparison import Comparison
from study.analysis.export import comparison_of, experiment_of
from study.analysis.notes import p_value, ratio
from study.cli.terminal import plural
from study.design.experiment import Experiment
from study.design.phases import FINALISTS
from study.protocol.plan import describe_plan
from study.statistics.verdicts import Verdict
from study.store import records
from study.store.records import counts
from study.store.store import Store

if TYPE_CHECKING:
    from study.place import Place
    from vae.data.dataset import Dataset  # torch, which tables do without

#: Verdicts for a terminal of 80 columns.
_SHORT = {
    "not distinguishable": "n.d.",
    "never reaches the target": "never",
    "unreliable": "unrel.",
    Verdict.NOT_MEASURED: "open",
}


def print_plan(
    console: Console,
    experiment: Experiment,
    data: Dataset,
    place: Place,
    minutes: float,
    finished: Counter[str],
) -> None:
    """What will run, where, and for about how long. `minutes` are those of the whole plan, `finished` the trials by
    phase that an earlier run has done."""
    plan = describe_plan(experiment)
    total = sum(plan.values())
    left = total - sum(min(n, finished[phase]) for phase, n in plan.items())
    console.print(
        f"{experiment.name}: {data.name}, {len(data.train)} train / {len(data.valid)} validation / "
        f"{len(data.test)} test images of {data.size} pixels; tau {experiment.budget:g} epochs; "
        f"{plural(place.workers, 'worker')} x {plural(place.threads, 'thread')}; {place.device}",
        soft_wrap=True,
    )
    if experiment.arms:
        finals = (
            f", the best {FINALISTS} on {experiment.tune_seeds} seeds" if experiment.has_finalists else ""
        )
        console.print(
            f"arms: baseline, {', '.join(experiment.arms)}; K = {experiment.tune_trials} tuning points{finals}, "
            f"S = {experiment.seeds} seeds, R = {experiment.blocks}",
            soft_wrap=True,
        )
    parts = ", ".join(f"{n} {phase}" for phase, n in plan.items() if n)
    parts += ", and then the combined arm" if experiment.combine else ""
    done = f"; {total - left} of them are done, the others take" if left < total else ","
    about = f"{done} at most about {max(minutes * left / max(total, 1), 0.1):.1f} minutes of training"
    console.print(
        f"{total} trials ({parts}){about if left else '; all of them are done'}",
        soft_wrap=True,
    )


def print_experiments(console: Console, store: Store) -> None:
    """One line an experiment."""
    names = store.experiments()
    if not names:
        console.print(f"No experiment in {store.database.name} yet. `python -m study run` makes one.")
        return
    table = Table("name", "data", "arms", "trials finished", "unfinished")
    for name in names:
        experiment = experiment_of(store, name)
        parts = counts(store, name)
        finished, unfinished = sum(c.finished for c in parts), sum(c.running + c.waiting for c in parts)
        arms = str(len(experiment.arms) + 1) if experiment.arms else "–"
        table.add_row(name, experiment.data, arms, str(finished), str(unfinished))
    console.print(table)


def print_search(console: Console, store: Store, name: str) -> None:
    """The search's outcomes, its best trials and how to have the best one's recipe."""
    trials = records.trials(store, name)
    searched = trials[trials["phase"] == "search"]
    if searched.empty:
        return
    counts = searched["outcome"].fillna("unfinished").value_counts()
    console.print(
        f"\nSearch: {plural(len(searched), 'trial')} ({', '.join(f'{n} {word}' for word, n in counts.items())})"
    )
    for reason, n in searched["reason"].dropna().value_counts().head(3).items():
        console.print(f"{n} failed: {reason}")
    best = searched[searched["state"] == "COMPLETE"].nsmallest(5, "best_valid_loss")
    if best.empty:
        return
    params = [column for column in searched.columns if column.startswith("params_")]
    table = Table("trial", "valid loss", "parameters", box=box.SIMPLE_HEAD)
    for row in best.to_dict("records"):
        shown = (f"{c.removeprefix('params_')} {_cell(row[c])}" for c in params if _cell(row[c]) != "–")
        table.add_row(str(row["number"]), f"{row['best_valid_loss']:.3f}", ", ".join(shown))
    console.print(table)
    console.print(f"Its best recipe as TOML: python -m study export --name {name}")


def print_comparison(console: Console, store: Store, name: str) -> None:
    """The forest table, the sentences and the validity notes."""
    comparison = comparison_of(store, name)
    if comparison is None:
        return
    if comparison.target is None:
        console.print("\nThe target isn't calibrated yet: nothing to compare.")
        return
    console.print()
    console.print(
        f"Time to a validation loss of {comparison.target:.2f} nats, against the tuned baseline (95 % intervals; "
        f"verdicts from simultaneous ones, margin {comparison.experiment.margin:.0%}):"
    )
    wide = console.width >= 120
    console.print(forest_table(comparison, wide))
    if not wide:
        console.print(
            "n.d.: not distinguishable; unrel.: some seeds never reach the target; never: none does; open: "
            "not measured yet"
        )
    for sentence in comparison.sentences:
        console.print(sentence)
    if not comparison.combined.empty:
        print_combined(console, comparison)
    for key, words in (("capping", "Adaptive capping"), ("pruning", "Pruning in the search")):
        if key in comparison.savings:
            console.print(f"{words} saved {comparison.savings[key]:.0%} of its training examples.")
    if comparison.notes:
        console.print("\nValidity:")
        for note in comparison.notes:
            console.print(f"- {note}")


def forest_table(comparison: Comparison, wide: bool) -> Table:
    """Arm, hits, speed-up in examples and in seconds with 95 % intervals and verdicts; with `wide` also
    epochs to target and the adjusted p."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("arm", no_wrap=True)
    table.add_column("hits", no_wrap=True, justify="right")
    if wide:
        table.add_column("epochs", no_wrap=True, justify="right")
        table.add_column("adjusted p", no_wrap=True, justify="right")
    for unit in ("examples", "seconds"):
        table.add_column(f"speed-up, {unit}", no_wrap=True)
        table.add_column(f"in {unit}" if wide else "", no_wrap=not wide)
    for row in sorted_arms(comparison.arms).to_dict("records"):
        get = _getter(row)
        cells = [str(row["arm"]), f"{row['hits']}/{row['seeds']}"]
        if wide:
            cells += [_cell(get("epochs"), ".2f"), p_value(get("p_adjusted"))]
        for unit in ("", "_seconds"):
            if row["kind"] == "baseline":
                cells += ["1", ""]
            else:
                cells.append(ratio(get(f"speed_up{unit}"), get(f"low{unit}"), get(f"high{unit}")))
                cells.append(_verdict(_cell(row.get(f"verdict{unit}")), wide))
        table.add_row(*cells)
    return table


def _verdict(words: str, wide: bool) -> str:
    return words if wide else _SHORT.get(words.split(" (")[0], words)


def print_combined(console: Console, comparison: Comparison) -> None:
    """The combine block's table; whether the parts add up is among the sentences."""
    table = Table(title="Combined, on fresh seeds (a family of its own)", title_justify="left", box=None)
    wide = console.width >= 120
    for column in ("arm", "hits", "speed-up, examples", "adj. p", "verdict"):
        table.add_column(column, no_wrap=True)
    for row in comparison.combined.to_dict("records"):
        shown = ratio(row["speed_up"], row["low"], row["high"])
        table.add_row(
            row["arm"],
            f"{row['hits']}/{row['seeds']}",
            shown,
            p_value(float(row["p_adjusted"])),
            _verdict(row["verdict"], wide),
        )
    console.print(table)


def sorted_arms(arms: pd.DataFrame) -> pd.DataFrame:
    """Techniques by speed-up, the baseline above, arms without a ratio and the references below."""
    order = arms["kind"].map({"baseline": 0, "technique": 1, "reference": 3}).astype(int)
    speed = arms["speed_up"] if "speed_up" in arms else pd.Series(float("nan"), index=arms.index)
    order = order.where(~((order == 1) & speed.isna()), 2)
    return arms.assign(_order=order, _speed=-speed.fillna(0.0)).sort_values(["_order", "_speed", "arm"])


def _getter(row: dict[Any, Any]) -> Any:
    def get(column: str) -> float:
        value = row.get(column)
        return float("nan") if value is None or pd.isna(value) else float(value)

    return get


def _cell(value: Any, format: str = ".4g") -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    return f"{value:{format}}" if isinstance(value, float) else str(value)
