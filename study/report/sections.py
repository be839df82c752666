"""The order of the evidence: which figures and tables each part of the report has, in which words."""

from __future__ import annotations

from pathlib import Path

from study.analysis.advice import advice
from study.analysis.evidence import Evidence
from study.analysis.findings import Findings, Shown
from study.analysis.notes import notes
from study.analysis.words import ratio_of
from study.design.phases import FINALISTS
from study.figures import arms as figures_arms
from study.figures import forest as figures_forest
from study.figures import tuning as figures_tuning
from study.figures.panel import Figure, Panel, single
from study.report import sections_search, tables, words
from study.report.blocks import Block, Notes, Section, Text
from study.store.locations import Location


def answer(evidence: Evidence) -> Section:
    """The first screen's figure and table."""
    blocks: list[Block] = []
    comparison = evidence.comparison
    if comparison is not None and comparison.target is not None and comparison.measured:
        blocks = [forest_figure(comparison)]
        blocks += [tables.arms_table(comparison), tables.explained_table(evidence)]
    elif not evidence.search.empty and evidence.search["best_valid_loss"].notna().any():
        blocks = [sections_search.history(evidence)]
    advised = advice(evidence)
    if advised is not None:
        blocks.insert(0, Text("use", advised.sentence, "\n".join(advised.commands), open=True))
    return Section("answer", words.title(evidence), blocks=blocks)


def forest_figure(comparison: Findings) -> Figure:
    """The forest plot in the clock's unit, and in seconds where there are some."""
    panels = [forest(comparison, "examples")]
    if comparison.timed:
        panels.append(forest(comparison, "seconds"))
    baseline = comparison.terms.baseline
    caption = (
        f"Right of the line is faster than {baseline}: look for thin bars that clear the shaded margin, and read open "
        "symbols as censored."
    )
    return Figure("forest", f"Speed-up over {baseline}", caption, panels, "pair")


def forest(comparison: Findings, unit: figures_forest.Unit) -> Panel:
    """The forest plot in one unit."""
    rows = figures_forest.arm_rows(comparison.arms, unit)
    name = comparison.terms.clock if unit == "examples" else unit
    figure = figures_forest.forest(rows, name, comparison.terms.margin)
    key = "forest" if unit == "examples" else "forest-seconds"
    return Panel(key, f"In {name}", figure, narrow=figures_forest.forest_narrow(figure))


def sections(
    evidence: Evidence, artifacts: Location | None = None, data_dir: Path | None = None
) -> list[Section]:
    """The parts after the first screen, in order; a part without anything to show says what is missing.

    Without `artifacts` the best model's pictures are left out."""
    parts: list[Section] = []
    if evidence.comparison is not None:
        parts += [
            _validity(evidence),
            curves(evidence),
            survival(evidence),
            _decomposition(evidence),
            by_target(evidence),
            _tuning(evidence),
            *_combined(evidence),
            *_article(evidence),
        ]
    return parts + sections_search.sections(evidence, artifacts, data_dir)


def _validity(evidence: Evidence) -> Section:
    assert evidence.comparison is not None
    said = notes(evidence.comparison, evidence.state)
    lead = "What a careful reader would ask about, the weightiest first."
    blocks: list[Block] = [Notes(said)] if said else []
    if evidence.comparison.measured:
        blocks.append(tables.details_table(evidence.comparison, evidence.workload.tau))
    nothing = "" if said else "Nothing to note so far."
    return Section("validity", "How far to trust this", lead if said else "", blocks, nothing)


def curves(evidence: Shown) -> Section:
    """The learning curves of all arms beside the baseline's."""
    title = "Learning curves"
    if evidence.bands.empty:
        return Section("curves", title, missing="No confirmation run has recorded a curve yet.")
    assert evidence.comparison is not None
    terms, target = evidence.comparison.terms, evidence.comparison.target
    blocks: list[Block] = []
    for unit, measure in (("examples", terms.seen), ("seconds", "seconds of training")):
        panels = figures_arms.learning_curves(
            evidence.bands,
            evidence.seeds,
            target,
            evidence.family,
            unit,
            clock=terms.clock,
            value=terms.unit,
            maximise=terms.maximise,
        )
        if not panels:
            continue
        caption = (
            "An arm is faster where its line meets the dashed target left of the dotted baseline; the band holds the "
            "middle 80 % of its seeds, a tick marks where each seed reaches the target."
        )
        axes = f"{terms.axis}, against {measure} (log scale)"
        figure = Figure(
            f"curves-{unit}",
            f"{terms.measure} against {terms.clock if unit == 'examples' else unit}",
            caption,
            panels,
            "grid",
            axes,
            "curves",
            terms.clock if unit == "examples" else unit,
        )
        blocks.append(figure)
    lead = (
        "Median and band over the confirmation seeds, each arm with its own tuned recipe. Seconds are examples over "
        "the throughput measured apart, so a busy machine does not bend them."
        if terms.tuned
        else "Median and band over each arm's runs."
    )
    if not terms.tuned:
        return Section("curves", title, lead, blocks)
    untimed = "" if evidence.speeds else "No arm has been timed yet, so there are no curves against seconds."
    return Section("curves", title, lead, blocks, untimed)


def survival(evidence: Shown) -> Section:
    """When each arm's runs reach the target."""
    title = "Time to target, seed by seed"
    if evidence.survival.empty:
        return Section("survival", title, missing="No confirmation run has ended yet.")
    assert evidence.comparison is not None
    terms = evidence.comparison.terms
    panels = figures_arms.survival(evidence.survival, evidence.family, clock=terms.clock)
    caption = (
        "Each step down is a seed that reaches the target: a curve left of the dotted baseline is faster, and one that "
        "stays above zero has seeds that never do."
    )
    axes = f"Share of seeds that have not reached the target, against {terms.counted} (log scale)"
    figure = Figure("survival-curves", "Kaplan-Meier curves", caption, panels, "grid", axes)
    return Section("survival", title, "Bands are pointwise 95 % intervals.", [figure])


def _decomposition(evidence: Evidence) -> Section:
    title = "Examples times throughput"
    assert evidence.comparison is not None
    if not evidence.comparison.timed:
        return Section("decomposition", title, missing="No arm has been timed against the baseline yet.")
    caption = (
        "The diamond is the circle times the square: a technique that needs fewer examples can still lose the race by "
        "slower steps."
    )
    what = "Fewer examples, faster steps, and their product"
    graph = figures_forest.decomposition(evidence.comparison.arms)
    figure = single("factors", "decomposition", what, caption, graph)
    lead = (
        "Throughput is timed apart from the trials, interleaved with the baseline. A censored arm has no ratio in "
        "examples, so it shows its throughput alone."
    )
    return Section("decomposition", title, lead, [figure])


def by_target(evidence: Shown) -> Section:
    """The speed-ups at other targets."""
    title = "The choice of target"
    if evidence.by_target.empty:
        return Section(
            "targets", title, missing="There are not enough confirmation curves to vary the target yet."
        )
    assert evidence.comparison is not None
    terms = evidence.comparison.terms
    panels = figures_arms.by_target(
        evidence.by_target,
        evidence.comparison.target,
        evidence.family,
        value=terms.unit,
        maximise=terms.maximise,
    )
    caption = "A line that stays on one side of 1x from left to right does not owe its answer to the target (dashed)."
    unit = f" in {terms.unit}" if terms.unit else ""
    axes = f"Speed-up in {terms.clock} (log scale), against the target{unit}, harder targets to the right"
    figure = Figure("by-target", "Speed-up against the target level", caption, panels, "grid", axes)
    lead = "The recipes stay those tuned at the main target; there" if terms.tuned else "There"
    lead += " is a gap where some seed misses the level."
    drawn = {panel.title for panel in panels}
    never = [arm for arm in evidence.by_target["arm"].unique() if arm not in drawn]
    lead += f" Some seed misses every level: {', '.join(never)}." if never else ""
    return Section("targets", title, lead, [figure])


def _tuning(evidence: Evidence) -> Section:
    title = "Tuning"
    if evidence.tuning.empty:
        return Section("tuning", title, missing="No arm has been tuned yet.")
    experiment = evidence.experiment
    panels = figures_tuning.tuning(
        evidence.tuning,
        evidence.workload.tau,
        evidence.workload.n_train,
        experiment.tune_trials,
        evidence.family,
    )
    caption = (
        "A line that still falls at the right edge belongs to an arm that more tuning points might make faster; open "
        "symbols did not reach the target, or were capped once the best were out of reach."
    )
    axes = f"Epochs to target, against the tuning point (of {experiment.tune_trials})"
    if experiment.guided:
        caption = (
            "Left of the dotted line are the coarse points, right of it the guided ones; open symbols did not reach "
            "the target. Guided points end where the best coarse one reached the tuning target, so they need not."
        )
        axes = f"Epochs to target, against the tuning point ({experiment.tune_trials} coarse, then guided)"
    blocks: list[Block] = _responses(evidence)
    blocks += [Figure("tuning-progress", "Best so far against tuning budget", caption, panels, "grid", axes)]
    if not evidence.winners.empty:
        caption = (
            "A symbol in a shaded edge is a winner that a wider range might beat; ticks are the points tried."
        )
        figure = figures_tuning.winners(evidence.winners, evidence.family)
        narrow = figures_tuning.winners_narrow(figure)
        where = "Where winners lie in their space"
        blocks.append(single("winners", "winners", where, caption, figure, narrow=narrow))
    if experiment.guided:
        lead = (
            "Every arm gets the same number of coarse points of one Sobol sequence over its own range, then two "
            "guided rounds round the lowest point of a curve through all its runs (the vertex), each on its own seed. "
            "The vertex is what was confirmed: it need not have been trained in tuning."
        )
        return Section("tuning", title, lead, blocks)
    seeds = experiment.tune_seeds
    finals = f": of its best {FINALISTS} the better over {seeds} seeds" if experiment.has_finalists else ""
    lead = (
        "Every arm gets the same number of points of one Sobol sequence over its own range, and its own winner is what "
        f"was confirmed{finals}."
    )
    return Section("tuning", title, lead, blocks)


def _responses(evidence: Evidence) -> list[Block]:
    """The response curves of guided tuning, where there are some."""
    if evidence.responses.empty:
        return []
    panels = figures_tuning.response(evidence.response_runs, evidence.responses, evidence.family)
    caption = (
        "The line is the mean of a Gaussian process through an arm's tuning runs (open circles: coarse points; "
        "triangles and squares: first and second guided round), its band 95 %; the large star is the vertex, which was "
        "confirmed. Shaded is what was added to a range because the vertex lay on its edge."
    )
    axes = (
        "How many e-folds of examples each run was behind the best at E0 (linear up to about 0.2, compressed beyond), "
        "against what was tuned"
    )
    return [Figure("tuning-response", "Response to what was tuned", caption, panels, "grid", axes)]


def _combined(evidence: Evidence) -> list[Section]:
    assert evidence.comparison is not None
    combined, addition = evidence.comparison.combined, evidence.comparison.addition
    if not combined:
        return []
    lead = ""
    if addition is not None:
        lead = (
            f"The combined arm's speed-up over the product of its parts' speed-ups is {ratio_of(addition)}."
        )
    rows = figures_forest.combined_rows(combined, evidence.family)
    figure = figures_forest.forest(rows, margin=evidence.experiment.margin)
    narrow = figures_forest.forest_narrow(figure)
    caption = (
        "Together the techniques should stand right of each alone; what is lost without one is what it adds."
    )
    title = "Speed-up of the combination and its parts"
    block = single("combined-forest", "forest-combined", title, caption, figure, narrow=narrow)
    return [Section("combined", "Techniques combined", lead, [block, tables.combined_table(evidence)])]


def _article(evidence: Evidence) -> list[Section]:
    assert evidence.comparison is not None
    article = evidence.comparison.article
    if not article:
        return []
    lead = (
        f"The source article's recipe, untuned, ends the budget at {article[0].loss:.2f} nats; this is how "
        "much sooner each tuned arm has that loss."
    )
    return [Section("article", "Against the article's recipe", lead, [tables.article_table(evidence)])]
