"""What the dashboard's notes say: the answer in words and one table, as Markdown that nothing breaks out of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from study.analysis.comparison import Comparison
from study.analysis.notes import p_value, ratio
from study.dashboard.board import Image
from study.report.markdown import markdown_text
from vae.recipe import Recipe

#: Stands where there is no number.
NONE = "–"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; the cells are Markdown already."""
    # The dashboard draws no lines between columns: an en space, which Markdown keeps, holds them apart.
    first, *others = ["| " + "\u2002 | ".join(line) + " |" for line in (header, *rows)]
    return "\n".join([first, "| --- " * len(header) + "|", *others])


def comparison_note(comparison: Comparison) -> str:
    """The comparison's answer, verdict table and validity notes."""
    experiment = comparison.experiment
    parts = [f"## {markdown_text(experiment.name)}: which techniques train faster?", *_answer(comparison)]
    if comparison.target is not None:
        parts.append(
            f"Time to a validation loss of **{comparison.target:.2f} nats**, against the tuned baseline: speed-ups "
            f"with 95 % intervals, verdicts by simultaneous ones (margin {experiment.margin:.0%})."
        )
        parts.append(verdict_table(comparison))
        parts.append("The forest plot, the survival curves and the learning curves are under *Analytics*.")
    if comparison.notes:
        parts.append("### How far to trust this")
        parts.append("\n".join(f"- {markdown_text(note)}" for note in comparison.notes))
    return "\n\n".join(parts)


def verdict_table(comparison: Comparison) -> str:
    """One row an arm: hits, speed-up in examples and in seconds with intervals, verdicts."""
    from study.cli.tables import sorted_arms

    header = ["arm", "hits", "speed-up, examples", "verdict", "adjusted p", "speed-up, seconds", "verdict"]
    rows = []
    for row in sorted_arms(comparison.arms).to_dict("records"):
        cells = [markdown_text(row["arm"]), f"{row['hits']}/{row['seeds']}"]
        if row["kind"] == "baseline":
            cells += ["1x", "baseline", NONE, "1x", "baseline"]
        else:
            p = markdown_text(p_value(_number(row, "p_adjusted")))
            cells += [*_verdict(row, ""), p, *_verdict(row, "_seconds")]
        rows.append(cells)
    return table(header, rows)


def arm_note(comparison: Comparison, arm: str, baseline_id: int) -> str:
    """One arm's own line of the verdict table, and the way to the others, the study with `baseline_id`."""
    text = f"## {markdown_text(arm)}"
    technique = comparison.experiment.technique(arm)
    if technique is not None:
        text += f"\n\n{markdown_text(technique.family.capitalize())}. {markdown_text(technique.why)}"
    rows = [row for row in comparison.arms.to_dict("records") if row["arm"] == arm]
    for row in rows if comparison.target is not None else ():
        text += f"\n\nTarget reached on {row['hits']} of {row['seeds']} seeds."
        for unit, words in (("", "examples"), ("_seconds", "seconds")):
            shown, verdict = _verdict(row, unit)
            text += f"\n\nIn {words}: **{verdict}**{'' if shown == NONE else f', {shown}'}."
    whole = markdown_text(f"{comparison.experiment.name}/baseline")
    # Names are never links: the dashboard's dark mode draws links dark blue.
    return f"{text}\n\nAll arms side by side: the note of {whole} ([open](/dashboard/studies/{baseline_id}/note))."


def search_note(
    name: str,
    trials: pd.DataFrame,
    study_id: int,
    images: Iterable[Image],
    missing: str,
    comparison: Comparison | None,
) -> str:
    """The joint search's state and best trial, after the comparison's answer where there is one.

    `trials` are the search's rows of `Store.trials`; `missing` says why a picture isn't among `images`."""
    parts = [f"## {markdown_text(name)}: joint search"]
    outcomes = trials["outcome"].where(trials["outcome"].notna(), trials["state"].str.lower()).value_counts()
    listed = ", ".join(f"{count} {markdown_text(word)}" for word, count in outcomes.items())
    parts.append(f"{len(trials)} trials: {listed}.")
    best = best_trial(trials)
    if best is not None:
        number = int(best["number"])
        parts.append(
            f"Best so far: trial {number}, validation loss **{best['best_valid_loss']:.2f} nats** "
            f"([open](/dashboard/studies/{study_id}/trials?numbers={number}))."
        )
        parts += [f"{image.title}:\n\n![{image.title}]({image.address})" for image in images]
        if missing:
            parts.append(f"Not all pictures can be shown: {markdown_text(missing)}.")
    if comparison is not None:
        parts += ["## Which techniques train faster?", *_answer(comparison)]
        if comparison.target is not None:
            parts.append(verdict_table(comparison))
    if best is not None:
        recipe = Recipe.from_json(best["recipe"]).to_toml().strip()
        parts.append(f"## The best trial's recipe\n\n```toml\n{recipe}\n```")
    return "\n\n".join(parts)


def best_trial(trials: pd.DataFrame) -> dict[str, Any] | None:
    """The row of the search's best complete trial so far; None before there is one."""
    done = trials[(trials["state"] == "COMPLETE") & trials["best_valid_loss"].notna()]
    if done.empty:
        return None
    return {str(key): value for key, value in done.nsmallest(1, "best_valid_loss").iloc[0].items()}


def _answer(comparison: Comparison) -> list[str]:
    if comparison.target is None:
        return ["The target isn't calibrated yet: nothing to compare so far."]
    return [markdown_text(sentence) for sentence in comparison.sentences]


def _verdict(row: Mapping[Any, Any], unit: str) -> tuple[str, str]:
    """Speed-up with its interval, and the verdict, as Markdown."""
    shown = ratio(*(_number(row, f"{column}{unit}") for column in ("speed_up", "low", "high")))
    verdict = row.get(f"verdict{unit}")
    return markdown_text(shown), markdown_text(verdict) if isinstance(verdict, str) else NONE


def _number(row: Mapping[Any, Any], column: str) -> float:
    value = row.get(column)
    return float("nan") if value is None or pd.isna(value) else float(value)
