"""The report's parts on the search, early stopping, the best model, outcomes and provenance."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from study.analysis.advice import Use, offers
from study.analysis.evidence import Evidence
from study.figures import endings
from study.figures import search as figures_search
from study.figures import space as figures_space
from study.figures.panel import Figure, single
from study.report import tables, words
from study.report.blocks import Block, Picture, Section, Text
from study.store.artifacts import Artifacts
from study.store.locations import Location
from study.terms import Phase
from vae.errors import UserError
from vae.recipe import Recipe

if TYPE_CHECKING:
    from study.report.model import Gallery


def sections(evidence: Evidence, artifacts: Location | None, data_dir: Path | None) -> list[Section]:
    """These parts in order; that of the best model only with a folder of artifacts."""
    search = [_search(evidence)] if evidence.experiment.search.trials else []
    model = [_model(evidence, artifacts, data_dir)] if artifacts is not None else []
    return [*search, _stopping(evidence), *model, _outcomes(evidence), _provenance(evidence)]


def history(evidence: Evidence) -> Figure:
    """Every search trial in order."""
    caption = (
        "The line is the best complete trial so far: where it has gone flat, more trials would find little; arrows at "
        "the edge are trials above the axis, which the better half of the complete ones sets."
    )
    graph = figures_search.history(evidence.search)
    return single("history", "history", "Every trial in order", caption, graph)


def _search(evidence: Evidence) -> Section:
    title = "The joint search"
    found, space = evidence.search, evidence.experiment.search.space
    if found.empty:
        return Section("search", title, missing="No search trial has ended yet.")
    plan = evidence.experiment.search
    lead = (
        f"One Optuna study in which everything is sampled ({plan.sampler} sampler, {plan.pruner} pruner). It finds a "
        "good recipe; it does not say which technique made it good, since the sampler goes where it looks good."
    )
    blocks: list[Block] = []
    if found["best_valid_loss"].notna().any():
        if evidence.comparison is not None and evidence.comparison.target is not None:
            blocks.append(history(evidence))
        blocks += _search_figures(evidence)
    missing = evidence.importance_note if evidence.importance.empty else ""
    if not found["best_valid_loss"].notna().any():
        missing = "No search trial has a validation loss, so there is nothing to draw."
    if (found["state"] == "COMPLETE").any() and space:
        blocks.append(tables.search_table(evidence))
    return Section("search", title, lead, blocks, missing)


def _search_figures(evidence: Evidence) -> list[Block]:
    found, space = evidence.search, evidence.experiment.search.space
    blocks: list[Block] = []
    if not evidence.importance.empty:
        caption = (
            "Trust a field that both evaluators put high: the thin lines over fANOVA, from its least to its greatest "
            "forest, show what a seed alone changes."
        )
        graph = figures_search.importance(evidence.importance)
        title, note = "Importance, by PED-ANOVA and by fANOVA", evidence.importance_note
        blocks.append(single("importances", "importance", title, caption, graph, axes=note))
    panels = figures_search.slices(found, space)
    if panels:
        caption = "Where points are dense and low the sampler found good values; an empty stretch is untested, not bad."
        axes = "Best validation loss, nats, against each field; symbols and arrows as in the figure of all trials"
        blocks.append(Figure("slices", "Loss against each field", caption, panels, "grid", axes))
        complete = (found["state"] == "COMPLETE").sum()
        if complete > 1:
            caption = "Where the coloured lines run together, the best trials agree on a value."
            graph = figures_space.parallel(found, space)
            title = "Parallel coordinates"
            blocks.append(single("parallel-lines", "parallel", title, caption, graph, layout="wide"))
    if not evidence.rate_distortion.empty:
        caption = (
            "Points on one dotted line have one loss: to its left they store less in z, to its right they reconstruct "
            "better; near rate 0 a model has collapsed."
        )
        graph = figures_space.rate_distortion(evidence.rate_distortion)
        title = "Rate against distortion"
        blocks.append(single("rate-distortion", "rate-distortion", title, caption, graph))
    return blocks


def _stopping(evidence: Evidence) -> Section:
    title = "Early stopping"
    if evidence.savings.empty:
        return Section("stopping", title, missing="No trial that could be stopped early has ended yet.")
    caption = "The hatched part of a bar is training that stopping early spared, of running every trial to the budget."
    tuning = "In coarse tuning" if evidence.experiment.guided else "In tuning"
    lead = (
        f"{tuning}, a trial ends at the target, or once it can no longer be among the best (adaptive capping, which "
        "never changes who they are); in the search the pruner decides, which can."
    )
    graph = endings.savings(evidence.savings)
    figure = single("stopping-savings", "savings", "Training spared", caption, graph)
    return Section("stopping", title, lead, [figure, tables.savings_table(evidence)])


def _model(evidence: Evidence, artifacts: Location, data_dir: Path | None) -> Section:
    title = "The best model"
    if not offers(evidence):
        return Section("model", title, missing="No trial whose model is kept has ended yet.")
    files = Artifacts.of(artifacts, evidence.name, evidence.kept_artifacts)
    found = _best_model(evidence, files)
    if found is None:
        missing = "The best model's file is not in the artifacts folder; --artifacts names another."
        return Section("model", title, missing=missing)
    from study.report.model import gallery  # torch, which all else in a report does without

    whose, recipe, path = found
    try:
        with path.local() as file:
            pictures = gallery(file, evidence.experiment, evidence.fingerprint, data_dir)
    except UserError as error:
        # A report is passed on: where the folder lies on this machine is nobody's business.
        return Section("model", title, missing=str(error).replace(str(path), path.name))
    if Recipe.from_json(pictures.recipe_json) != recipe:
        # One folder may serve several databases.
        missing = f"{path.name} is of another experiment; --artifacts names this one's folder."
        return Section("model", title, missing=missing)
    missing = "; ".join(pictures.missing)
    missing = f"{missing[0].upper()}{missing[1:]}." if missing else ""
    active = (
        ""
        if pictures.latent.empty
        else f", {pictures.active_units} of them active on the test {_examples(pictures)}"
    )
    expected = "; images are expected pixels" if pictures.samples is not None else ""
    lead = f"{whose}, {recipe.latent_size} latent dimensions{active}{expected}."
    return Section("model", title, lead, _pictures(pictures), missing)


def _best_model(evidence: Evidence, files: Artifacts) -> tuple[str, Recipe, Location] | None:
    """(whose it is, its recipe, its file) of the model with the lowest loss on offer, or else of the search's best,
    as a worker keeps it or as a command copies it; None where there is no such trial, or no file of it."""
    if not files.are_ours():
        return None
    offer = next((offer for offer in offers(evidence) if offer.use is Use.BEST), None)
    runs = [offer.run if offer is not None else None, evidence.best_search]
    known = [(run, run.recipe) for run in runs if run is not None and run.recipe is not None]
    copied = files.best
    for run, recipe in known:
        path = files.model(run.study, run.number)
        if path.exists() or (copied.exists() and run is known[-1][0]):
            whose = f"Search trial {run.number}"
            if run.phase == Phase.CONFIRM and offer is not None:
                whose = f"{run.arm}, confirmation run {run.index + 1} ({offer.because})"
            return whose, recipe, path if path.exists() else copied
    return None


def _examples(pictures: Gallery) -> str:
    """What the data's examples are called: only what could be drawn is an image."""
    return "examples" if pictures.samples is None else "images"


def _pictures(pictures: Gallery) -> list[Block]:
    blocks: list[Block] = []
    if pictures.reconstructions is not None:
        caption = "Top: test images; below each: what the model makes of it. Look for what changes the class."
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
        caption = f"Each row moves one latent dimension from -3 to 3, {pictures.walk_start}; from the top: z {listed}."
        alt = "A grid of images; each row changes one latent dimension."
        blocks.append(Picture("walk", "A walk along each latent dimension", caption, alt, pictures.walk, 430))
    if not pictures.latent.empty:
        labelled = bool(pictures.latent["label"].notna().any())
        caption = f"Test {_examples(pictures)} at their posterior means; " + (
            "classes that lie apart were told apart without their labels."
            if labelled
            else f"clusters are kinds of {_examples(pictures)} that the model tells apart."
        )
        narrow = {
            "height": 430,
            "legend.orientation": "h",
            "legend.y": 1.0,
            "legend.yanchor": "bottom",
            "margin.t": 60,
        }
        graph = figures_space.latent_map(pictures.latent, pictures.axes)
        blocks.append(single("latent", "latent-map", "Latent map", caption, graph, narrow=narrow))
    return blocks


def _outcomes(evidence: Evidence) -> Section:
    title = "How the trials ended"
    if evidence.outcomes.empty:
        return Section("endings", title, missing="No trial has been planned yet.")
    caption = "Diverged, collapsed and failed are trainings that went wrong, and count as misses."
    graph = endings.outcomes(evidence.outcomes)
    blocks: list[Block] = [single("outcome-bars", "outcomes", "Trials by outcome", caption, graph)]
    blocks.append(tables.outcomes_table(evidence))
    if not evidence.failures.empty:
        blocks.append(tables.failures_table(evidence))
    calm = "" if not evidence.failures.empty else "No trial diverged, collapsed or failed."
    return Section("endings", title, calm, blocks)


def _provenance(evidence: Evidence) -> Section:
    blocks: list[Block] = [words.provenance(evidence)]
    blocks.append(Text("command", "Run it again, from the file below", words.command(evidence), open=True))
    blocks.append(
        Text("experiment", f"{evidence.name}.toml: the experiment", words.experiment_toml(evidence))
    )
    for i, (what, recipe) in enumerate(words.recipes(evidence)):
        blocks.append(Text(f"recipe-{i}", f"Recipe of {what}", recipe.to_toml()))
    lead = "The same command on the same database goes on where it stopped; on an empty one it starts again."
    return Section("provenance", "Provenance", lead, blocks)
