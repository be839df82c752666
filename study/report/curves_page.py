"""The page of an answer from curves: the sections of a comparison that need curves alone, and where they come from."""

from __future__ import annotations

from pathlib import Path

from study.analysis.arm import sorted_arms
from study.analysis.curve_notes import curve_notes
from study.analysis.from_curves import FromCurves
from study.analysis.sentences import verdict_sentences
from study.analysis.words import ratio
from study.curves.recorded import described
from study.figures.panel import Figure, as_float
from study.report import sections, tables
from study.report.blocks import Block, Cell, Notes, Section, Table, estimate, number
from study.report.page import assemble
from vae.files import write_bytes


def write_curves_report(found: FromCurves, path: Path) -> Path:
    """Write the HTML page to `path`, whole or not at all. Raises FailureError where it can't be written."""
    return write_bytes(path, render(found).encode())


def render(found: FromCurves) -> str:
    """The page's HTML; the same for the same curves and question."""
    comparison = found.comparison
    families = [arm.family for arm in sorted_arms(comparison.arms)]
    return assemble(
        name=found.name,
        data=comparison.terms.on,
        first=_answer(found),
        sections=_sections(found),
        answer=verdict_sentences(comparison),
        workload=f"{'; '.join(described(found.curves))}.",
        sure=[_how_sure(found)],
        missing=[],
        families=families if len(set(families)) > 2 else [],
    )


def figures(found: FromCurves) -> dict[str, Figure]:
    """The page's figures by id."""
    blocks = [block for section in [_answer(found), *_sections(found)] for block in section.blocks]
    return {block.id: block for block in blocks if isinstance(block, Figure)}


def _answer(found: FromCurves) -> Section:
    comparison = found.comparison
    blocks: list[Block] = [sections.forest_figure(comparison), tables.arms_table(comparison)]
    return Section("answer", f"Which {comparison.terms.arms} get there faster?", blocks=blocks)


def _sections(found: FromCurves) -> list[Section]:
    said = curve_notes(found)
    lead = "What a careful reader would ask about, the weightiest first."
    blocks: list[Block] = [*([Notes(said)] if said else []), _details(found), _sensitivities(found)]
    return [
        Section("validity", "How far to trust this", lead, blocks),
        sections.curves(found),
        sections.survival(found),
        sections.by_target(found),
        _by_budget(found),
        _provenance(found),
    ]


def _how_sure(found: FromCurves) -> str:
    terms, family = found.comparison.terms, found.comparison.techniques
    pairs = "pairs runs of the same seed" if found.paired else "compares runs without pairs"
    target = (
        f"The target is {terms.level(found.comparison.target)}" if found.comparison.target is not None else ""
    )
    return (
        f"{target}; the budget is {found.tau:g} {terms.clock}. Each ratio {pairs}. Thick bars are 95 % intervals, thin "
        f"ones simultaneous over all {len(family)}; a verdict is given where the p of more than the margin of "
        f"{terms.margin:.0%} (shaded) is below 0.05, adjusted for all of them."
    )


def _details(found: FromCurves) -> Table:
    """What else was estimated of each arm."""
    titles: tuple[str, ...] = (
        "arm",
        "share of runs that hit",
        "ratio on joint hits",
        "truncated ratio (RMST)",
    )
    titles += ("PAR2, budgets", "ERT, budgets", "widest cell at a hit, %")
    rows = []
    for arm in sorted_arms(found.comparison.arms):
        low, high = arm.hit_interval
        rows.append(
            [
                Cell(arm.arm, arm.arm, family=arm.family),
                Cell(f"{low:.2f} to {high:.2f}", low),
                estimate(arm.conditional),
                estimate(arm.rmst),
                number(as_float(arm.par2) / found.tau, ".2f"),
                number(as_float(arm.ert) / found.tau, ".2f"),
                number(100 * as_float(arm.resolution), ".0f"),
            ]
        )
    caption = "More about each arm: censoring, penalised run times, and how far apart evaluations lie."
    return Table("details", caption, titles, rows, words=("arm",))


def _sensitivities(found: FromCurves) -> Table:
    """The same ratio by other readings of the curves."""
    titles = ("arm", "reading", "hits", "speed-up")
    rows = []
    for arm in found.comparison.techniques:
        judged = Cell(f"{arm.hits} of {arm.seeds}", arm.hits)
        first = arm.examples.estimate if arm.examples is not None else None
        rows.append(
            [Cell(arm.arm, arm.arm, family=arm.family), Cell("first hit, as judged"), judged, estimate(first)]
        )
        for row in found.sensitivities:
            if row.arm == arm.arm:
                hits = Cell(f"{row.hits} of {row.seeds}", row.hits)
                cells = [Cell(row.arm, row.arm, family=arm.family), Cell(row.reading, row.reading), hits]
                rows.append([*cells, estimate(row.estimate)])
    caption = (
        "The speed-up by other readings of the same curves, with 95 % intervals of the seeds alone: a hit that lasts, "
        "and the crossing of the mean curve, which hides misses and has no interval."
    )
    return Table("sensitivities", caption, titles, rows, words=("arm", "reading"))


def _by_budget(found: FromCurves) -> Section:
    title = "The choice of budget"
    frame = found.by_budget
    if frame.empty:
        return Section("budgets", title, missing="The baseline has no value at a share of its budget.")
    clock = found.comparison.terms.clock
    titles = ("arm", f"budget, {clock}", "value of the baseline by then", "hits", "speed-up to that value")
    rows = []
    for row in frame.to_dict("records"):
        rows.append(
            [
                Cell(str(row["arm"]), str(row["arm"]), family=found.family(str(row["arm"]))),
                number(row["budget"]),
                number(row["target"], ".5g"),
                Cell(f"{row['arm_hits']} of {row['seeds']}", float(row["arm_hits"])),
                Cell(ratio(row["speed_up"], row["low"], row["high"]), as_float(row["speed_up"])),
            ]
        )
    caption = (
        "How much sooner each arm has the value that every run of the baseline has by a share of the budget, with 95 % "
        "intervals of the seeds alone; a dash where some run never has it."
    )
    lead = "A technique that is faster early need not be at the end: what it gains depends on how long one trains."
    return Section("budgets", title, lead, [Table("by-budget", caption, titles, rows, words=("arm",))])


def _provenance(found: FromCurves) -> Section:
    curves, question = found.curves, found.question
    rows = [("read", source) for source in curves.sources]
    rows += [
        ("value", f"{curves.value}, {'higher' if curves.maximise else 'lower'} is better"),
        ("clock", curves.clock),
        ("baseline", found.baseline),
        ("target", f"{found.comparison.target:.6g}" if found.comparison.target is not None else "none"),
        ("margin", f"{question.margin:.2%}"),
        ("budget", f"{found.tau:g} {curves.clock}"),
        ("runs", ", ".join(f"{arm} {len(own.runs)}" for arm, own in found.reached.items())),
        ("evaluations", f"{sum(map(len, curves)):,}"),
    ]
    cells = [[Cell(key), Cell(value)] for key, value in rows]
    caption = "What was read, and how it was understood."
    titles = ("what", "value")
    table = Table("provenance-facts", caption, titles, cells, words=titles, sortable=False)
    return Section("provenance", "Where it comes from", blocks=[table])
