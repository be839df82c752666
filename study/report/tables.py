"""Tables as a reader sees them: which columns, in which words, sorted by what."""

from __future__ import annotations

import math
from typing import Any

from study.analysis.arm import ArmResult, ArticleArm, CombinedArm, Measure, sorted_arms
from study.analysis.evidence import Evidence
from study.analysis.findings import Findings, bits
from study.analysis.sentences import sooner_words
from study.analysis.words import DASH, examples_of, p_value, speed_up_of
from study.figures.panel import as_float
from study.report import words
from study.report.blocks import Cell, Table, estimate, number
from study.statistics.speed_up import Difference
from study.statistics.verdicts import Verdict

#: A sign before each verdict, so that a table can be skimmed. All are in WGL4, which every common font has.
SIGNS = {Verdict.FASTER: "▲", Verdict.SLOWER: "▼", Verdict.UNDECIDED: "≈", Verdict.NEVER: "×"}
#: How good a verdict is, the best first.
_RANKS = {
    Verdict.FASTER: 0.0,
    Verdict.UNDECIDED: 1.0,
    Verdict.SLOWER: 2.0,
    Verdict.UNRELIABLE: 3.0,
    Verdict.NOT_MEASURED: 3.0,
    Verdict.NOT_TUNED: 3.0,
    Verdict.UNRELIABLE_BASELINE: 3.0,
    Verdict.NEVER: 4.0,
}


def arms_table(comparison: Findings) -> Table:
    """The forest plot's numbers."""
    terms, arms = comparison.terms, sorted_arms(comparison.arms)
    in_epochs = any(arm.epochs is not None for arm in arms) or terms.clock == "examples"
    titles: tuple[str, ...] = ("arm", "hits", f"{'epochs' if in_epochs else terms.clock} to target")
    titles += (f"speed-up, {terms.clock}", "adjusted p", f"verdict, {terms.clock}")
    titles += ("throughput",) if terms.tuned else ()
    has_seconds = comparison.has_seconds
    titles += ("speed-up, seconds", "verdict, seconds") if has_seconds else ()
    rows = []
    for arm in arms:
        examples, seconds = arm.examples, arm.seconds
        base = Cell("1", 1.0) if arm.is_baseline else None
        rows.append(
            [
                _arm(arm.arm, arm.family),
                _hits(arm),
                number(arm.epochs, ".2f") if in_epochs else number(arm.mean_examples),
                base or _examples(arm),
                _p(examples),
                verdict(examples),
                *([estimate(arm.throughput)] if terms.tuned else []),
                *([base or _speed_up(seconds), verdict(seconds)] if has_seconds else []),
            ]
        )
    p = "p of more than the margin, after Holm" if terms.guided else "adjusted p after Holm"
    intervals = "simultaneous 95 % intervals" if terms.guided else "95 % intervals"
    caption = f"Speed-up of each arm over {terms.baseline}, with {intervals}; {p}."
    return Table("arms", caption, titles, rows, words=("arm", f"verdict, {terms.clock}", "verdict, seconds"))


def explained_table(evidence: Evidence) -> Table:
    """What each arm is: what it changes, and why that might help."""
    titles = ("arm", "family", "changes", "why", "source")
    rows = []
    for arm in _arms(evidence):
        technique = evidence.experiment.technique(arm.arm)
        if technique is None:
            changes, why = words.arm_without_technique(evidence, arm)
            source = ""
        else:
            changes, why, source = technique.change, technique.why, technique.source
        if technique is not None and technique.different_model:
            changes += "; another model"
        told = (arm.family, changes or DASH, why or DASH, source or DASH)
        rows.append([_arm(arm.arm, arm.family), *(Cell(text, text) for text in told)])
    caption = "What each arm changes in the baseline's recipe; the techniques are tuned anew, and nothing else differs."
    return Table("explained", caption, titles, rows, words=titles)


def details_table(comparison: Findings, tau: float) -> Table:
    """What else was estimated of each arm."""
    titles: tuple[str, ...] = ("arm", "share of seeds that hit", "ratio on joint hits")
    titles += ("truncated ratio (RMST)", "PAR2, tau", "ERT, tau", "speed-up with cold start", "cold start, s")
    dimensions = comparison.terms.dimensions
    titles += (
        "test loss at the hit, nats",
        "final loss, nats",
        *(["final loss, bits per dim"] if dimensions else []),
    )
    titles += ("resolution, %", "winner on an edge")
    rows = []
    for arm in sorted_arms(comparison.arms):
        low, high = arm.hit_interval
        rows.append(
            [
                _arm(arm.arm, arm.family),
                Cell(f"{low:.2f} to {high:.2f}", low) if arm.seeds else Cell(DASH),
                estimate(arm.conditional),
                estimate(arm.rmst),
                number(as_float(arm.par2) / tau, ".2f"),
                number(as_float(arm.ert) / tau, ".2f"),
                estimate(arm.cold),
                number(arm.cold_start_seconds, ".3g"),
                _difference(arm.test),
                number(arm.final_loss, ".2f"),
                *([number(bits(arm.final_loss, dimensions), ".4f")] if dimensions else []),
                number(100 * as_float(arm.resolution), ".0f"),
                Cell(", ".join(arm.edges) or DASH),
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
            _arm(arm.arm, evidence.family(arm.arm)),
            _hits(arm),
            _speed_up(arm.examples),
            _p(arm.examples),
            verdict(arm.examples),
        ]
        for arm in evidence.comparison.combined
    ]
    caption = "The combined arm, its parts and the leave-one-outs on fresh seeds, a family of its own."
    return Table("combined-arms", caption, titles, rows, words=("arm", "verdict"))


def article_table(evidence: Evidence) -> Table:
    """How much sooner each arm reaches the article's loss."""
    assert evidence.comparison is not None
    titles = ("arm", "hits", "epochs to the article's loss", "sooner in examples", "sooner in seconds, x")
    rows = [
        [
            _arm(arm.arm, evidence.family(arm.arm)),
            _hits(arm),
            number(as_float(arm.mean_examples) / evidence.workload.n_train, ".2f"),
            Cell(sooner_words(arm), arm.sooner.ratio) if arm.sooner is not None else Cell(DASH),
            number(arm.sooner_seconds, ".1f"),
        ]
        for arm in evidence.comparison.article
    ]
    caption = "How much sooner each tuned arm has the loss that the article's recipe ends with."
    return Table("article-arms", caption, titles, rows, words=("arm",))


def search_table(evidence: Evidence, most: int = 10) -> Table:
    """The search's best trials."""
    found, dimensions = evidence.search, evidence.workload.dimensions
    best = found[found["state"] == "COMPLETE"].nsmallest(most, "best_valid_loss")
    fields = [column.removeprefix("params_") for column in found.columns if column.startswith("params_")]
    fields = [field for field in fields if best[f"params_{field}"].notna().any()]
    words = [
        field for field in fields if best[f"params_{field}"].map(lambda value: isinstance(value, str)).any()
    ]
    rows = []
    for row in best.to_dict("records"):
        cells = [number(row["number"], ".0f"), number(row["best_valid_loss"], ".3f")]
        if dimensions:
            cells.append(number(bits(row["best_valid_loss"], dimensions), ".4f"))
        for field in fields:
            value = row[f"params_{field}"]
            cells.append(Cell(value, value) if isinstance(value, str) else number(value, ".3g"))
        rows.append(cells)
    titles = ("trial", "best loss, nats", *(["best loss, bits per dim"] if dimensions else []), *fields)
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


def verdict(measure: Measure | None) -> Cell:
    """A verdict with its sign, sorted by how good it is."""
    if measure is None:
        return Cell(DASH)
    sign, word = SIGNS.get(measure.verdict, "○"), measure.verdict
    return Cell(f"{sign} {measure.words}", _RANKS[word], strong=word.decided)


def _arms(evidence: Evidence) -> list[ArmResult]:
    assert evidence.comparison is not None
    return sorted_arms(evidence.comparison.arms)


def _arm(arm: Any, family: Any) -> Cell:
    return Cell(str(arm), str(arm), family=str(family))


def _hits(arm: ArmResult | CombinedArm | ArticleArm) -> Cell:
    return Cell(f"{arm.hits} of {arm.seeds}", arm.hits) if arm.seeds else Cell(DASH)


def _examples(arm: ArmResult) -> Cell:
    known = arm.examples is not None and arm.examples.known
    told = examples_of(arm)
    return _speed_up(arm.examples) if known else Cell(told, None if told == DASH else arm.at_most)


def _speed_up(measure: Measure | None) -> Cell:
    return Cell(speed_up_of(measure), measure.ratio) if measure is not None and measure.known else Cell(DASH)


def _p(measure: Measure | None) -> Cell:
    p = measure.p_adjusted if measure is not None else None
    return Cell(p_value(p), p)


def _difference(test: Difference | None) -> Cell:
    """The test loss at the hit against the baseline's."""
    if test is None or not math.isfinite(test.mean):
        return Cell(DASH)
    limits = f" [{test.low:+.2f}, {test.high:+.2f}]" if math.isfinite(test.low) else " [no interval]"
    return Cell(f"{test.mean:+.2f}{limits}", test.mean)


def _text(value: Any) -> str:
    return value if isinstance(value, str) and value else DASH
