"""Tables as a reader sees them: which columns, in which words, sorted by what."""

from __future__ import annotations

from typing import Any

import pandas as pd

from study.report.blocks import DASH, Cell, Table, as_float, interval, number
from study.report.evidence import Evidence
from study.terminal import sorted_arms
from study.verdicts import FASTER, NEVER, SLOWER, UNDECIDED

#: A sign before each verdict, so that it doesn't hang on the words alone when a table is skimmed.
SIGNS = {FASTER: "▲", SLOWER: "▼", UNDECIDED: "≈", NEVER: "✕"}


def verdict_cell(verdict: Any) -> Cell:
    """A verdict with its sign, sorted by how good it is."""
    if verdict is None or pd.isna(verdict) or verdict == "baseline":
        return Cell(DASH)
    word = str(verdict)
    sign = SIGNS.get(word, "◌")
    rank = (
        [FASTER, UNDECIDED, SLOWER].index(word)
        if word in (FASTER, UNDECIDED, SLOWER)
        else 3 + (word == NEVER)
    )
    return Cell(f"{sign} {word}", float(rank), strong=word in (FASTER, SLOWER))


def arms_table(evidence: Evidence) -> Table:
    """The forest plot's numbers."""
    assert evidence.comparison is not None
    rows = []
    for row in sorted_arms(evidence.comparison.arms).to_dict("records"):
        base = row["kind"] == "baseline"
        rows.append(
            [
                Cell(str(row["arm"]), str(row["arm"]), family=str(row["family"])),
                Cell(str(row["family"]), str(row["family"])),
                Cell(f"{row['hits']} of {row['seeds']}", as_float(row["hits"])),
                number(row.get("epochs"), ".2f"),
                Cell("1", 1.0) if base else ratio_cell(row, ""),
                number(row.get("p_adjusted"), ".3f"),
                verdict_cell(row.get("verdict")),
                interval(*(row.get(f"throughput{end}") for end in ("", "_low", "_high"))),
                Cell("1", 1.0) if base else ratio_cell(row, "_seconds"),
                verdict_cell(row.get("verdict_seconds")),
            ]
        )
    titles = (
        "arm",
        "family",
        "hits",
        "epochs to target",
        "speed-up, examples",
        "adjusted p",
        "verdict, examples",
    )
    titles += ("throughput", "speed-up, seconds", "verdict, seconds")
    return Table(
        "arms",
        "Speed-up of each arm over the tuned baseline, with 95 % intervals; adjusted p after Holm.",
        titles,
        rows,
        frozenset(
            {
                "hits",
                "epochs to target",
                "speed-up, examples",
                "adjusted p",
                "throughput",
                "speed-up, seconds",
            }
        ),
    )


def ratio_cell(row: dict[Any, Any], unit: str) -> Cell:
    """The speed-up in examples ("") or "_seconds"."""
    return interval(row.get(f"speed_up{unit}"), row.get(f"low{unit}"), row.get(f"high{unit}"))


def details_table(evidence: Evidence) -> Table:
    """What else was estimated of each arm."""
    assert evidence.comparison is not None
    rows = []
    for row in sorted_arms(evidence.comparison.arms).to_dict("records"):
        test = as_float(row.get("test_difference"))
        limits = f" [{as_float(row.get('test_low')):+.2f}, {as_float(row.get('test_high')):+.2f}]"
        rows.append(
            [
                Cell(str(row["arm"]), str(row["arm"]), family=str(row["family"])),
                Cell(
                    f"{as_float(row['hit_low']):.2f} to {as_float(row['hit_high']):.2f}",
                    as_float(row["hit_low"]),
                ),
                interval(*(row.get(f"conditional{end}") for end in ("", "_low", "_high"))),
                interval(*(row.get(f"rmst{end}") for end in ("", "_low", "_high"))),
                number(as_float(row.get("par2")) / evidence.tau, ".2f"),
                number(as_float(row.get("ert")) / evidence.tau, ".2f"),
                interval(*(row.get(f"cold{end}") for end in ("", "_low", "_high"))),
                number(row.get("cold_start_seconds"), ".3g"),
                Cell(f"{test:+.2f}{limits}", test) if test == test else Cell(DASH),
                number(row.get("final_loss"), ".2f"),
                number(100 * as_float(row.get("resolution")), ".0f"),
                Cell(str(row["edges"]) or DASH),
            ]
        )
    titles = ("arm", "share of seeds that hit", "ratio on joint hits", "truncated ratio (RMST)", "PAR2, tau")
    titles += ("ERT, tau", "speed-up with cold start", "cold start, s", "test loss at the hit, nats")
    titles += ("final loss, nats", "resolution, %", "winner on an edge")
    return Table(
        "details",
        "More about each arm: censoring, penalised run times, cold start, and the test split at the hit "
        "(difference to the baseline; above 0 is worse).",
        titles,
        rows,
        frozenset(titles[1:-1]),
    )


def combined_table(evidence: Evidence) -> Table:
    """The combine block."""
    assert evidence.comparison is not None
    rows = [
        [
            Cell(str(row["arm"]), str(row["arm"]), family=evidence.family(str(row["arm"]))),
            Cell(f"{row['hits']} of {row['seeds']}", as_float(row["hits"])),
            ratio_cell(row, ""),
            number(row.get("p_adjusted"), ".3f"),
            verdict_cell(row.get("verdict")),
        ]
        for row in evidence.comparison.combined.to_dict("records")
    ]
    titles = ("arm", "hits", "speed-up, examples", "adjusted p", "verdict")
    caption = "The combined arm, its parts and the leave-one-outs on fresh seeds, a family of its own."
    return Table("combined-arms", caption, titles, rows, frozenset(titles[1:4]))


def article_table(evidence: Evidence) -> Table:
    """How much sooner each arm reaches the article's loss."""
    assert evidence.comparison is not None
    rows = []
    for row in evidence.comparison.article.to_dict("records"):
        rows.append(
            [
                Cell(str(row["arm"]), str(row["arm"]), family=evidence.family(str(row["arm"]))),
                Cell(f"{row['hits']} of {row['seeds']}", as_float(row["hits"])),
                number(as_float(row.get("examples")) / evidence.n_train, ".2f"),
                interval(*(row.get(f"sooner{end}") for end in ("", "_low", "_high"))),
                number(row.get("sooner_seconds"), ".1f"),
            ]
        )
    titles = ("arm", "hits", "epochs to the article's loss", "sooner in examples, x", "sooner in seconds, x")
    caption = "How much sooner each tuned arm has the loss that the article's recipe ends with."
    return Table("article-arms", caption, titles, rows, frozenset(titles[1:]))


def search_table(evidence: Evidence, most: int = 10) -> Table:
    """The search's best trials."""
    found = evidence.search
    best = found[found["state"] == "COMPLETE"].nsmallest(most, "best_valid_loss")
    fields = [column.removeprefix("params_") for column in found.columns if column.startswith("params_")]
    fields = [field for field in fields if best[f"params_{field}"].notna().any()]
    rows = []
    for row in best.to_dict("records"):
        cells = [Cell(str(row["number"]), float(row["number"])), number(row["best_valid_loss"], ".3f")]
        for field in fields:
            value = row[f"params_{field}"]
            missing = value is None or pd.isna(value)
            cells.append(
                Cell(DASH) if missing else Cell(value) if isinstance(value, str) else number(value, ".3g")
            )
        rows.append(cells)
    titles = ("trial", "best loss, nats", *fields)
    numeric = {
        field for field in fields if not best[f"params_{field}"].map(lambda v: isinstance(v, str)).any()
    }
    caption = f"The {len(rows)} best complete trials of the search."
    return Table(
        "search-best-trials", caption, titles, rows, frozenset({"trial", "best loss, nats"} | numeric)
    )


def savings_table(evidence: Evidence) -> Table:
    """What stopping early saved."""
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
    titles = ("part", "rule", "trials", "ended before tau", "examples used, %", "saved, %")
    return Table("savings", "Training examples used and saved, of running every trial to tau.", titles, rows,
                 frozenset(titles[2:]))  # fmt: skip


def outcomes_table(evidence: Evidence) -> Table:
    """Arms and phases by outcome."""
    frame = evidence.outcomes
    kinds = list(dict.fromkeys(frame["outcome"]))
    rows = []
    for (arm, phase), part in frame.groupby(["arm", "phase"], sort=False):
        count = dict(zip(part["outcome"], part["trials"], strict=True))
        cells = [Cell(str(arm), str(arm), family=evidence.family(str(arm))), Cell(str(phase), str(phase))]
        rows.append([*cells, *(Cell(str(count.get(kind, 0)), float(count.get(kind, 0))) for kind in kinds)])
    titles = ("arm", "phase", *(str(kind) for kind in kinds))
    return Table("outcomes", "How every trial ended.", titles, rows, frozenset(titles[2:]))


def failures_table(evidence: Evidence, most: int = 100) -> Table:
    """Trials that went wrong, with reasons."""
    rows = [
        [
            Cell(str(row["arm"]), str(row["arm"])),
            Cell(str(row["phase"] or DASH)),
            number(row["number"], ".0f"),
            number(row["seed"], ".0f"),
            Cell(str(row["outcome"])),
            Cell(str(row["reason"]) if isinstance(row["reason"], str) else DASH),
            number(row["examples"], ".0f"),
        ]
        for row in evidence.failures.head(most).to_dict("records")
    ]
    left = len(evidence.failures) - len(rows)
    more = f" ({left} more are in the export)" if left else ""
    titles = ("arm", "phase", "trial", "seed", "outcome", "reason", "examples")
    caption = f"Trials that diverged, collapsed or failed{more}."
    return Table("failures", caption, titles, rows, frozenset({"trial", "seed", "examples"}))
