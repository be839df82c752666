"""Tables as a reader sees them: which columns, in which words, sorted by what."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from study.analysis.evidence import Evidence
from study.analysis.notes import p_value
from study.cli.tables import sorted_arms
from study.figures.panel import as_float
from study.report import words
from study.report.blocks import DASH, Cell, Table, interval, number
from study.statistics.verdicts import Verdict

#: A sign before each verdict, so that a table can be skimmed.
SIGNS = {Verdict.FASTER: "▲", Verdict.SLOWER: "▼", Verdict.UNDECIDED: "≈", Verdict.NEVER: "✕"}

Row = dict[Any, Any]


def arms_table(evidence: Evidence) -> Table:
    """The forest plot's numbers."""
    titles: tuple[str, ...] = ("arm", "hits", "epochs to target", "speed-up, examples", "adjusted p")
    titles += ("verdict, examples", "throughput", "speed-up, seconds", "verdict, seconds")
    rows = []
    for row in _arms(evidence):
        base = row["kind"] == "baseline"
        rows.append(
            [
                _arm(row["arm"], row["family"]),
                _hits(row),
                number(row.get("epochs"), ".2f"),
                Cell("1", 1.0) if base else _ratio(row, "speed_up"),
                _p(row),
                verdict(row.get("verdict")),
                _ratio(row, "throughput"),
                Cell("1", 1.0) if base else _ratio(row, "speed_up", "_seconds"),
                verdict(row.get("verdict_seconds")),
            ]
        )
    caption = "Speed-up of each arm over the tuned baseline, with 95 % intervals; adjusted p after Holm."
    return Table("arms", caption, titles, rows, words=("arm", "verdict, examples", "verdict, seconds"))


def explained_table(evidence: Evidence) -> Table:
    """What each arm is: what it changes, and why that might help."""
    titles = ("arm", "family", "changes", "why", "source")
    rows = []
    for row in _arms(evidence):
        technique = evidence.experiment.technique(str(row["arm"]))
        if technique is None:
            changes, why = words.arm_without_technique(evidence, str(row["arm"]), row.get("recipe"))
            source = ""
        else:
            changes, why, source = technique.change, technique.why, technique.source
        if technique is not None and technique.different_model:
            changes += "; another model"
        told = (str(row["family"]), changes or DASH, why or DASH, source or DASH)
        rows.append([_arm(row["arm"], row["family"]), *(Cell(text, text) for text in told)])
    caption = "What each arm changes in the baseline's recipe; the techniques are tuned anew, and nothing else differs."
    return Table("explained", caption, titles, rows, words=titles)


def details_table(evidence: Evidence) -> Table:
    """What else was estimated of each arm."""
    titles: tuple[str, ...] = ("arm", "share of seeds that hit", "ratio on joint hits")
    titles += ("truncated ratio (RMST)", "PAR2, tau", "ERT, tau", "speed-up with cold start", "cold start, s")
    titles += ("test loss at the hit, nats", "final loss, nats", "resolution, %", "winner on an edge")
    rows = []
    for row in _arms(evidence):
        low, high = as_float(row["hit_low"]), as_float(row["hit_high"])
        rows.append(
            [
                _arm(row["arm"], row["family"]),
                Cell(f"{low:.2f} to {high:.2f}", low) if row["seeds"] else Cell(DASH),
                _ratio(row, "conditional"),
                _ratio(row, "rmst"),
                number(as_float(row.get("par2")) / evidence.workload.tau, ".2f"),
                number(as_float(row.get("ert")) / evidence.workload.tau, ".2f"),
                _ratio(row, "cold"),
                number(row.get("cold_start_seconds"), ".3g"),
                _difference(row),
                number(row.get("final_loss"), ".2f"),
                number(100 * as_float(row.get("resolution")), ".0f"),
                Cell(str(row["edges"]) or DASH),
            ]
        )
    caption = (
        "More about each arm: censoring, penalised run times, cold start, and the test split at the hit "
        "(difference to the baseline; above 0 is worse)."
    )
    return Table("details", caption, titles, rows, words=("arm", "winner on an edge"))


def combined_table(evidence: Evidence) -> Table:
    """The combine block."""
    assert evidence.comparison is not None
    titles = ("arm", "hits", "speed-up, examples", "adjusted p", "verdict")
    rows = [
        [
            _arm(row["arm"], evidence.family(row["arm"])),
            _hits(row),
            _ratio(row, "speed_up"),
            _p(row),
            verdict(row.get("verdict")),
        ]
        for row in evidence.comparison.combined.to_dict("records")
    ]
    caption = "The combined arm, its parts and the leave-one-outs on fresh seeds, a family of its own."
    return Table("combined-arms", caption, titles, rows, words=("arm", "verdict"))


def article_table(evidence: Evidence) -> Table:
    """How much sooner each arm reaches the article's loss."""
    assert evidence.comparison is not None
    titles = ("arm", "hits", "epochs to the article's loss", "sooner in examples", "sooner in seconds, x")
    rows = [
        [
            _arm(row["arm"], evidence.family(row["arm"])),
            _hits(row),
            number(as_float(row.get("examples")) / evidence.workload.n_train, ".2f"),
            _ratio(row, "sooner"),
            number(row.get("sooner_seconds"), ".1f"),
        ]
        for row in evidence.comparison.article.to_dict("records")
    ]
    caption = "How much sooner each tuned arm has the loss that the article's recipe ends with."
    return Table("article-arms", caption, titles, rows, words=("arm",))


def search_table(evidence: Evidence, most: int = 10) -> Table:
    """The search's best trials."""
    found = evidence.search
    best = found[found["state"] == "COMPLETE"].nsmallest(most, "best_valid_loss")
    fields = [column.removeprefix("params_") for column in found.columns if column.startswith("params_")]
    fields = [field for field in fields if best[f"params_{field}"].notna().any()]
    words = [
        field for field in fields if best[f"params_{field}"].map(lambda value: isinstance(value, str)).any()
    ]
    rows = []
    for row in best.to_dict("records"):
        cells = [number(row["number"], ".0f"), number(row["best_valid_loss"], ".3f")]
        for field in fields:
            value = row[f"params_{field}"]
            cells.append(Cell(value, value) if isinstance(value, str) else number(value, ".3g"))
        rows.append(cells)
    titles = ("trial", "best loss, nats", *fields)
    caption = f"The {len(rows)} best complete trials of the search."
    return Table("search-best-trials", caption, titles, rows, words=tuple(words))


def savings_table(evidence: Evidence) -> Table:
    """What stopping early saved."""
    titles = ("part", "rule", "trials", "ended before tau", "examples used, %", "saved, %")
    rows = [
        [
            Cell(str(row["part"]), str(row["part"])),
            Cell(str(row["rule"]), str(row["rule"])),
            number(row["trials"], ".0f"),
            number(row["stopped"], ".0f"),
            number(100 * row["used"], ".0f"),
            number(100 * row["saved"], ".0f"),
        ]
        for row in evidence.savings.to_dict("records")
    ]
    caption = "Training examples used and saved, of running every trial to tau."
    return Table("savings", caption, titles, rows, words=("part", "rule"), closed=True)


def outcomes_table(evidence: Evidence) -> Table:
    """Arms and phases by outcome."""
    frame = evidence.outcomes
    kinds = [str(kind) for kind in dict.fromkeys(frame["outcome"])]
    rows = []
    for (arm, phase), part in frame.groupby(["arm", "phase"], sort=False):
        count = dict(zip(part["outcome"], part["trials"], strict=True))
        cells = [_arm(arm, evidence.family(str(arm))), Cell(str(phase), str(phase))]
        rows.append([*cells, *(number(count.get(kind, 0), ".0f") for kind in kinds)])
    caption = "How every trial ended, by arm and phase."
    return Table("outcomes", caption, ("arm", "phase", *kinds), rows, words=("arm", "phase"), closed=True)


def failures_table(evidence: Evidence, most: int = 100) -> Table:
    """Trials that went wrong, with reasons."""
    titles = ("arm", "phase", "trial", "seed", "outcome", "reason", "examples")
    rows = [
        [
            _arm(row["arm"], evidence.family(str(row["arm"]))),
            Cell(_text(row["phase"]), _text(row["phase"])),
            number(row["number"], ".0f"),
            number(row["seed"], ".0f"),
            Cell(_text(row["outcome"]), _text(row["outcome"])),
            Cell(_text(row["reason"]), _text(row["reason"])),
            number(row["examples"], ".0f"),
        ]
        for row in evidence.failures.head(most).to_dict("records")
    ]
    left = len(evidence.failures) - len(rows)
    more = f"; {left} more are in the database" if left else ""
    caption = f"Trials that diverged, collapsed or failed{more}."
    return Table("failures", caption, titles, rows, words=("arm", "phase", "outcome", "reason"))


def verdict(word: Any) -> Cell:
    """A verdict with its sign, sorted by how good it is."""
    if word is None or pd.isna(word) or word == "baseline":
        return Cell(DASH)
    order = [Verdict.FASTER, Verdict.UNDECIDED, Verdict.SLOWER]
    rank = order.index(word) if word in order else 4 if word == Verdict.NEVER else 3
    return Cell(
        f"{SIGNS.get(word, '◌')} {word}", float(rank), strong=word in (Verdict.FASTER, Verdict.SLOWER)
    )


def _arms(evidence: Evidence) -> list[Row]:
    assert evidence.comparison is not None
    return sorted_arms(evidence.comparison.arms).to_dict("records")


def _arm(arm: Any, family: Any) -> Cell:
    return Cell(str(arm), str(arm), family=str(family))


def _hits(row: Row) -> Cell:
    return Cell(f"{row['hits']} of {row['seeds']}", as_float(row["hits"])) if row["seeds"] else Cell(DASH)


def _ratio(row: Row, name: str, unit: str = "") -> Cell:
    """A ratio and its interval, from the columns of that name."""
    prefix = "" if name == "speed_up" else f"{name}_"
    return interval(row.get(f"{name}{unit}"), row.get(f"{prefix}low{unit}"), row.get(f"{prefix}high{unit}"))


def _p(row: Row) -> Cell:
    p = as_float(row.get("p_adjusted"))
    return Cell(DASH) if math.isnan(p) else Cell(p_value(p), p)


def _difference(row: Row) -> Cell:
    """The test loss at the hit against the baseline's."""
    mean, low, high = (as_float(row.get(f"test_{end}")) for end in ("difference", "low", "high"))
    limits = f" [{low:+.2f}, {high:+.2f}]" if math.isfinite(low) else " [no interval]"
    return Cell(f"{mean:+.2f}{limits}", mean) if math.isfinite(mean) else Cell(DASH)


def _text(value: Any) -> str:
    return value if isinstance(value, str) and value else DASH
