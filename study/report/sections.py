"""The order of the evidence: which figures and tables each part of the report has, in which words."""

from __future__ import annotations

from pathlib import Path

from study.experiment import Experiment
from study.report import display, facts, figures_arms, figures_forest, figures_search, figures_tuning
from study.report.blocks import Block, Figure, Notes, Panel, Picture, Section, Text
from study.report.evidence import Evidence
from study.report.images import Gallery, best_model, gallery
from vae.errors import UserError
from vae.recipe import Recipe


def answer(evidence: Evidence) -> Section:
    """The first screen's figure and table."""
    blocks: list[Block] = []
    comparison = evidence.comparison
    if comparison is not None and comparison.target is not None and "speed_up" in comparison.arms:
        panels = [_forest(evidence, "", "In examples")]
        if "throughput" in comparison.arms:
            panels.append(_forest(evidence, "_seconds", "In seconds"))
        caption = (
            "Right of the line is faster than the tuned baseline: look for thin bars that clear the shaded margin, "
            "and read open symbols as censored."
        )
        blocks = [Figure("forest", "Speed-up over the tuned baseline", caption, panels, "pair")]
        blocks.append(display.arms_table(evidence))
    elif not evidence.search.empty and evidence.search["best_valid_loss"].notna().any():
        blocks = [_history(evidence)]
    return Section("answer", facts.title(evidence), blocks=blocks)


def _forest(evidence: Evidence, unit: str, title: str) -> Panel:
    assert evidence.comparison is not None
    figure = figures_forest.forest(evidence.comparison.arms, unit, evidence.experiment.margin)
    return Panel(
        f"forest{unit}".replace("_", "-"), title, figure, narrow=figures_forest.forest_narrow(figure)
    )


def _history(evidence: Evidence) -> Figure:
    caption = (
        "The line is the best complete trial so far: where it has gone flat, more trials would find little."
    )
    figure = figures_search.history(evidence.search)
    return Figure("history", "Every trial in order", caption, [Panel("history", "", figure)])


def sections(evidence: Evidence, artifacts: Path, data_dir: Path | None) -> list[Section]:
    """The parts after the first screen, in order; a part without anything to show says what is missing."""
    parts: list[Section] = []
    if evidence.comparison is not None:
        parts += [
            _validity(evidence),
            _curves(evidence),
            _survival(evidence),
            _decomposition(evidence),
            _by_target(evidence),
            _tuning(evidence),
            *_combined(evidence),
            *_article(evidence),
        ]
    if evidence.experiment.search.trials:
        parts.append(_search(evidence))
    parts += [
        _stopping(evidence),
        _model(evidence, artifacts, data_dir),
        _outcomes(evidence),
        _provenance(evidence),
    ]
    return parts


def _validity(evidence: Evidence) -> Section:
    assert evidence.comparison is not None
    notes = evidence.comparison.notes
    lead = "What a careful reader would ask about, the weightiest first."
    blocks: list[Block] = [Notes(notes)] if notes else []
    if "speed_up" in evidence.comparison.arms:
        blocks.append(display.details_table(evidence))
    nothing = "" if notes else "Nothing to note so far."
    return Section("validity", "How far to trust this", lead if notes else "", blocks, nothing)


def _curves(evidence: Evidence) -> Section:
    title = "Learning curves"
    if evidence.bands.empty:
        return Section("curves", title, missing="No confirmation run has recorded a curve yet.")
    assert evidence.comparison is not None
    target = evidence.comparison.target
    blocks: list[Block] = []
    for unit, measure in (("examples", "training examples seen"), ("seconds", "seconds of training")):
        panels = figures_arms.learning_curves(evidence.bands, evidence.seeds, target, evidence.family, unit)
        if not panels:
            continue
        caption = (
            "An arm is faster where its line meets the dashed target left of the dotted baseline; the band holds the "
            "middle 80 % of its seeds, a tick marks where each seed reaches the target."
        )
        axes = f"Validation loss, nats per example, against {measure} (log scale)"
        figure = Figure(
            f"curves-{unit}", f"Validation loss against {unit}", caption, panels, "grid", axes, "curves", unit
        )
        blocks.append(figure)
    lead = (
        "Median and band over the confirmation seeds, each arm with its own tuned recipe. Seconds are examples over the "
        "throughput measured apart, so a busy machine does not bend them."
    )
    untimed = "" if evidence.speeds else "No arm has been timed yet, so there are no curves against seconds."
    return Section("curves", title, lead, blocks, untimed)


def _survival(evidence: Evidence) -> Section:
    title = "Time to target, seed by seed"
    if evidence.survival.empty:
        return Section("survival", title, missing="No confirmation run has ended yet.")
    panels = figures_arms.survival(evidence.survival, evidence.family)
    caption = (
        "Each step down is a seed that reaches the target: a curve left of the dotted baseline is faster, and one that "
        "stays above zero has seeds that never do."
    )
    axes = "Share of seeds that have not reached the target, against training examples (log scale)"
    figure = Figure("survival-curves", "Kaplan-Meier curves", caption, panels, "grid", axes)
    return Section("survival", title, "Bands are pointwise 95 % intervals.", [figure])


def _decomposition(evidence: Evidence) -> Section:
    title = "Examples times throughput"
    assert evidence.comparison is not None
    arms = evidence.comparison.arms
    if "throughput" not in arms or arms["throughput"].isna().all():
        return Section("decomposition", title, missing="No arm has been timed against the baseline yet.")
    caption = (
        "The diamond is the circle times the square: a technique that needs fewer examples can still lose the race by "
        "slower steps."
    )
    panel = Panel("decomposition", "", figures_forest.decomposition(arms))
    figure = Figure("factors", "Fewer examples, faster steps, and their product", caption, [panel])
    lead = (
        "Throughput is timed apart from the trials, interleaved with the baseline. A censored arm has no ratio in "
        "examples, so it shows its throughput alone."
    )
    return Section("decomposition", title, lead, [figure])


def _by_target(evidence: Evidence) -> Section:
    title = "The choice of target"
    if evidence.by_target.empty:
        return Section(
            "targets", title, missing="There are not enough confirmation curves to vary the target yet."
        )
    assert evidence.comparison is not None
    panels = figures_arms.by_target(evidence.by_target, evidence.comparison.target, evidence.family)
    caption = "A line that stays on one side of 1x from left to right does not owe its answer to the target (dashed)."
    axes = "Speed-up in examples (log scale), against the target in nats, harder targets to the right"
    figure = Figure("by-target", "Speed-up against the target level", caption, panels, "grid", axes)
    lead = "The recipes stay those tuned at the main target; there is a gap where some seed misses the level."
    return Section("targets", title, lead, [figure])


def _tuning(evidence: Evidence) -> Section:
    title = "Tuning"
    if evidence.tuning.empty:
        return Section("tuning", title, missing="No arm has been tuned yet.")
    experiment = evidence.experiment
    panels = figures_tuning.tuning(
        evidence.tuning, evidence.tau, evidence.n_train, experiment.tune_trials, evidence.family
    )
    caption = (
        "A line that still falls at the right edge belongs to an arm that more tuning points might make faster; open "
        "symbols did not reach the target, or were capped once they could not win."
    )
    axes = f"Epochs to target, against the tuning point (of {experiment.tune_trials})"
    blocks: list[Block] = [
        Figure("tuning-progress", "Best so far against tuning budget", caption, panels, "grid", axes)
    ]
    if not evidence.winners.empty:
        caption = "A large symbol in a shaded edge is a winner that a wider range might beat; ticks are the points tried."
        figure = figures_tuning.winners(evidence.winners, evidence.family)
        narrow = {"annotations": [], "margin.r": 10, "yaxis.tickfont.size": 11}
        panel = Panel("winners", "", figure, narrow=narrow)
        blocks.append(Figure("winners", "Where winners lie in their space", caption, [panel]))
    lead = (
        "Every arm gets the same number of points of one Sobol sequence over its own range, and its own winner is what "
        "was confirmed."
    )
    return Section("tuning", title, lead, blocks)


def _combined(evidence: Evidence) -> list[Section]:
    assert evidence.comparison is not None
    if evidence.comparison.combined.empty:
        return []
    addition = evidence.comparison.addition
    lead = ""
    if addition is not None:
        limits = (
            f" [{addition.low:.2f}, {addition.high:.2f}]"
            if addition.low == addition.low
            else " [no interval]"
        )
        lead = f"The combined arm's speed-up over the product of its parts' is {addition.ratio:.2f}x{limits}."
    return [Section("combined", "Techniques combined", lead, [display.combined_table(evidence)])]


def _article(evidence: Evidence) -> list[Section]:
    assert evidence.comparison is not None
    table = evidence.comparison.article
    if table.empty:
        return []
    lead = (
        f"The source article's recipe, untuned, ends the budget at {table['loss'].iloc[0]:.2f} nats; this is how much "
        "sooner each tuned arm has that loss."
    )
    return [Section("article", "Against the article's recipe", lead, [display.article_table(evidence)])]


def _search(evidence: Evidence) -> Section:
    title = "The joint search"
    found, space = evidence.search, evidence.experiment.search.space
    if found.empty:
        return Section("search", title, missing="No search trial has ended yet.")
    plan = evidence.experiment.search
    lead = (
        f"One Optuna study in which everything is sampled ({plan.sampler} sampler, {plan.pruner} pruner). It finds a "
        "good recipe; it does not say which technique made it good, since the sampler visits what looks good more often."
    )
    blocks: list[Block] = []
    if found["best_valid_loss"].notna().any():
        if evidence.comparison is not None and evidence.comparison.target is not None:
            blocks.append(_history(evidence))
        blocks += _search_figures(evidence)
    missing = evidence.importance_note
    if not found["best_valid_loss"].notna().any():
        missing = "No search trial has a validation loss, so there is nothing to draw."
    if (found["state"] == "COMPLETE").any() and space:
        blocks.append(display.search_table(evidence))
    return Section("search", title, lead, blocks, missing)


def _search_figures(evidence: Evidence) -> list[Block]:
    found, space = evidence.search, evidence.experiment.search.space
    blocks: list[Block] = []
    if not evidence.importance.empty:
        caption = (
            "Trust a field that both evaluators put high; they read the same few complete trials differently, and the bars "
            "over fANOVA show what its forests' seeds alone change."
        )
        panel = Panel("importance", "", figures_search.importance(evidence.importance))
        blocks.append(Figure("importances", "Importance, by PED-ANOVA and by fANOVA", caption, [panel]))
    panels = figures_search.slices(found, space)
    if panels:
        caption = "Where the points are dense and low the sampler found good values; an empty stretch is untested, not bad."
        axes = "Best validation loss, nats, against each field; symbols as in the figure of all trials"
        blocks.append(Figure("slices", "Loss against each field", caption, panels, "grid", axes))
        complete = (found["state"] == "COMPLETE").sum()
        if complete > 1:
            caption = "Where the coloured lines run together, the best trials agree on a value."
            panel = Panel("parallel", "", figures_search.parallel(found, space))
            blocks.append(Figure("parallel", "Parallel coordinates", caption, [panel]))
    if not evidence.rate_distortion.empty:
        caption = (
            "Points on one dotted line have one loss: to its left they store less in z, to its right they reconstruct "
            "better; near rate 0 a model has collapsed."
        )
        panel = Panel("rate-distortion", "", figures_search.rate_distortion(evidence.rate_distortion))
        blocks.append(Figure("rate-distortion", "Rate against distortion", caption, [panel]))
    return blocks


def _stopping(evidence: Evidence) -> Section:
    title = "Early stopping"
    if evidence.savings.empty:
        return Section("stopping", title, missing="No trial that could be stopped early has ended yet.")
    caption = "The hatched part of a bar is training that stopping early spared, of running every trial to the budget."
    panel = Panel("savings", "", figures_tuning.savings(evidence.savings))
    lead = (
        "In tuning, a trial ends at the target, or once it can no longer beat the best one (adaptive capping, which never "
        "changes the winner); in the search the pruner decides, which can."
    )
    figure = Figure("stopping-savings", "Training spared", caption, [panel])
    return Section("stopping", title, lead, [figure, display.savings_table(evidence)])


def _model(evidence: Evidence, artifacts: Path, data_dir: Path | None) -> Section:
    title = "The best model"
    path = best_model(artifacts, evidence.name)
    if path is None:
        return Section("model", title, missing=_no_model(evidence.experiment))
    try:
        pictures = gallery(path, evidence.experiment, evidence.fingerprint, data_dir)
    except UserError as error:
        return Section("model", title, missing=str(error))
    recipe = Recipe.from_json(pictures.recipe_json)
    missing = "; ".join(pictures.missing)
    missing = f"{missing[0].upper()}{missing[1:]}." if missing else ""
    active = (
        f", {pictures.active_units} of them active on the test images" if not pictures.latent.empty else ""
    )
    lead = f"The search's best model, {recipe.latent_size} latent dimensions{active}. Pictures show expected pixels."
    return Section("model", title, lead, _pictures(pictures), missing)


def _no_model(experiment: Experiment) -> str:
    if not experiment.search.trials:
        return "A comparison keeps no model; `python -m study search` keeps its best one."
    return "No model is kept under the artifacts folder yet (--artifacts names another)."


def _pictures(pictures: Gallery) -> list[Block]:
    blocks: list[Block] = []
    if pictures.reconstructions is not None:
        caption = "Top: test images; below each: what the model makes of it. Look for strokes that change the class."
        alt = "Two rows of images: test images above, their reconstructions below."
        blocks.append(
            Picture("reconstructions", "Reconstructions", caption, alt, pictures.reconstructions, 720)
        )
    if pictures.samples is not None:
        caption = "Decoded draws from the prior: images of no class show holes between what the encoder uses."
        blocks.append(
            Picture("samples", "Samples from the prior", caption, "A grid of samples.", pictures.samples, 720)
        )
    if pictures.walk is not None:
        listed = ", ".join(str(i + 1) for i in pictures.walk_dimensions)
        caption = (
            f"Each row moves one latent dimension from -3 to 3, the others at 0; from the top: z {listed}."
        )
        alt = "A grid of images; each row changes one latent dimension."
        blocks.append(Picture("walk", "A walk along each latent dimension", caption, alt, pictures.walk, 430))
    if not pictures.latent.empty:
        labelled = bool(pictures.latent["label"].notna().any())
        caption = "Test images at their posterior means; " + (
            "labels that form clusters of their own were never seen in training."
            if labelled
            else "clusters are kinds."
        )
        panel = Panel("latent-map", "", figures_search.latent_map(pictures.latent, pictures.axes))
        blocks.append(Figure("latent", "Latent map", caption, [panel]))
    return blocks


def _outcomes(evidence: Evidence) -> Section:
    title = "How the trials ended"
    if evidence.outcomes.empty:
        return Section("endings", title, missing="No trial has been planned yet.")
    caption = "Anything but completed, hit, capped, pruned and stopped is a training that went wrong, and counts as a miss."
    panel = Panel("outcomes", "", figures_tuning.outcomes(evidence.outcomes))
    blocks: list[Block] = [Figure("outcome-bars", "Trials by outcome", caption, [panel])]
    blocks.append(display.outcomes_table(evidence))
    if not evidence.failures.empty:
        blocks.append(display.failures_table(evidence))
    calm = "" if not evidence.failures.empty else "No trial diverged, collapsed or failed."
    return Section("endings", title, calm, blocks)


def _provenance(evidence: Evidence) -> Section:
    blocks: list[Block] = [facts.provenance(evidence)]
    blocks.append(Text("command", "Run it again, from the file below", facts.command(evidence), open=True))
    blocks.append(
        Text("experiment", f"{evidence.name}.toml: the experiment", facts.experiment_toml(evidence))
    )
    for i, (words, recipe) in enumerate(facts.recipes(evidence)):
        blocks.append(Text(f"recipe-{i}", f"Recipe of {words}", recipe.to_toml()))
    lead = "The same command on the same database goes on where it stopped; on an empty one it starts again."
    return Section("provenance", "Provenance", lead, blocks)
