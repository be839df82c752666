"""The report in words: the workload, how sure the answer is, what is missing, and how to run it again."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pandas as pd
import tomli_w

from study.analysis.advice import offers
from study.analysis.arm import ArmResult
from study.analysis.evidence import Evidence
from study.analysis.findings import nats
from study.analysis.words import brief, changes
from study.design.phases import FINALISTS
from study.report.blocks import Cell, Table
from study.terms import ARTICLE, SEARCH_BEST
from vae.recipe import Recipe

#: Words for the recipe's likelihoods.
LIKELIHOODS = {
    "cross_entropy": "cross-entropy on values from 0 to 1",
    "bernoulli": "Bernoulli, static binarisation",
    "dynamic_bernoulli": "Bernoulli, dynamic binarisation in training",
    "continuous_bernoulli": "continuous Bernoulli",
    "gaussian": "Gaussian",
    "discretised_logistic": "discretised logistic on 8-bit pixels",
}


def title(evidence: Evidence) -> str:
    """The page's heading."""
    if evidence.experiment.arms:
        return "Which techniques make this VAE train faster?"
    return "A search for this VAE's best recipe"


def workload(evidence: Evidence) -> str:
    """What every arm shares, in one line."""
    experiment, recipe = evidence.experiment, evidence.experiment.recipe
    parts = [
        f"{experiment.data}, {evidence.workload.n_train:,} training examples",
        f"{network(recipe)}, {recipe.latent_size} latent",
        LIKELIHOODS[recipe.likelihood],
        f"budget {experiment.budget:g} epoch{'' if experiment.budget == 1 else 's'} "
        f"({evidence.workload.tau:,} examples)",
    ]
    if experiment.arms:
        finalists = f"the best {FINALISTS} on {experiment.tune_seeds} seeds"
        finalists = f" ({finalists})" if experiment.has_finalists else ""
        shared = f"{experiment.tune_trials} tuning points{finalists} and {experiment.seeds} seeds an arm"
        parts.append(shared + (f" in {experiment.blocks} blocks" if experiment.blocks > 1 else ""))
    devices = sorted(evidence.trials["device"].dropna().unique())
    return "; ".join([*parts, *map(str, devices)]) + "."


def network(recipe: Recipe) -> str:
    """The network and its size in a few words: "500 hidden", or its name and options."""
    if recipe.model == "mlp":
        return f"{brief(recipe.hidden)} hidden"
    options = ", ".join(f"{name} {brief(value)}" for name, value in recipe.model_options.items())
    return f"network {recipe.model}" + (f" ({options})" if options else "")


def arm_without_technique(evidence: Evidence, arm: ArmResult) -> tuple[str, str]:
    """(what it changes, why it is there) of an arm that is no technique."""
    experiment = evidence.experiment
    if arm.is_baseline:
        fields = ", ".join(experiment.shared_fields)
        return f"tunes {fields}" if fields else "nothing", "What every other arm is compared with."
    why = {
        ARTICLE: "The source article's recipe, untuned: what tuning alone is worth. Outside the family of tests.",
        SEARCH_BEST: "The joint search's best recipe, as it was found: what changing everything at once finds. "
        "Outside the family of tests.",
    }
    return changes(arm.recipe, experiment.recipe), why.get(arm.arm, "")


def how_sure(evidence: Evidence) -> list[str]:
    """What the answer rests on, and how far to trust it."""
    comparison, experiment = evidence.comparison, evidence.experiment
    if comparison is None or comparison.target is None or not comparison.measured:
        return []
    family = comparison.techniques
    if experiment.guided:
        return [*_how_sure(evidence), _target_words(evidence)]
    tuned = (
        ", for the tuned recipes: the luck of one tuning is not in them"
        if experiment.blocks == 1
        else f"; the unit is the mean of a block, tuned anew in each of {experiment.blocks}"
    )
    said = [
        f"Each ratio compares mean examples to target over {experiment.seeds} paired seeds. Thick bars are 95 % "
        f"intervals{tuned}. A verdict asks more: the simultaneous interval over all {len(family)} techniques (thin "
        f"bar) must clear a margin of {experiment.margin:.0%} (shaded)."
    ]
    censored = [arm for arm in family if arm.misses]
    if censored:
        said.append(
            f"{len(censored)} of {len(family)} techniques miss the target on some seed; they keep their row as an "
            f"open symbol at the ratio truncated at the budget, which flatters them, and get no plain ratio."
        )
    said.append(_target_words(evidence))
    return said


def _how_sure(evidence: Evidence) -> list[str]:
    """By method 2."""
    comparison, experiment = evidence.comparison, evidence.experiment
    assert comparison is not None
    family = comparison.techniques
    shares = [arm.tuning_share for arm in family if arm.tuning_share is not None]
    luck = f" (of the variance {min(shares):.0%} to {max(shares):.0%})" if shares else ""
    if experiment.blocks > 1:
        luck = f" (the unit is the mean of a block, tuned anew in each of {experiment.blocks})"
    said = [
        f"Each ratio compares mean examples to target over {experiment.seeds} paired seeds. Intervals hold the luck of "
        f"tuning as well{luck}: they are for the technique at its best, not for one recipe. Thick bars are 95 % "
        f"intervals, thin ones simultaneous over all {len(family)} techniques; a verdict is given where the p of more "
        f"than the margin of {experiment.margin:.0%} (shaded) is below 0.05, adjusted for all of them."
    ]
    counted = [f"{arm.arm} {arm.hits}/{arm.seeds}" for arm in family if arm.misses and arm.measured]
    if counted:
        said.append(
            f"Misses count as tau, up to one seed in ten: {', '.join(counted)}. With more of them there is no verdict."
        )
    return said


def _target_words(evidence: Evidence) -> str:
    comparison = evidence.comparison
    assert comparison is not None
    assert comparison.target is not None
    calibration, target = comparison.calibration, nats(comparison.target, evidence.workload.dimensions)
    if evidence.experiment.target is not None or calibration is None:
        return f"The target, {target}, was given."
    bad = "a bad" if comparison.experiment.guided else "the worst"
    how = f"{bad} calibration seed's" if calibration.raised else "the baseline's median"
    spread = (
        f", and examples to target vary by {calibration.spread:.0%} between seeds"
        if calibration.hits > 1
        else ""
    )
    aim = (
        f" Tuning aims at {calibration.tuning_target:.2f}, so that a winner reaches the target on fresh seeds too."
        if calibration.tuning_target < calibration.target
        else ""
    )
    falls = (
        f": the loss falls {-calibration.slope:.2f} nats per doubling of examples there"
        if calibration.slope < 0.0
        else ""
    )
    return (
        f"The target, {target}, is {how} loss at {comparison.experiment.target_at:.0%} of the "
        f"budget{falls}{spread}.{aim}"
    )


def command(evidence: Evidence) -> str:
    """The command that runs this experiment again, or goes on with it, from the file below it."""
    experiment = evidence.experiment
    verb = (
        "run" if experiment.arms and experiment.search.trials else "compare" if experiment.arms else "search"
    )
    return f"python -m study {verb} --file {evidence.name}.toml"


def experiment_toml(evidence: Evidence) -> str:
    """The experiment as the file that `--file` reads, every value resolved."""
    return tomli_w.dumps(_without_none(evidence.experiment.to_json()))


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_without_none(item) for item in value]
    return value


def recipes(evidence: Evidence) -> list[tuple[str, Recipe]]:
    """(what it is, recipe) of those a reader may want: those on offer, and the search's best."""
    offered = offers(evidence)
    listed = [
        (f"{offer.arm}, {offer.use.words}: {evidence.name}-{offer.use}.toml", offer.recipe)
        for offer in offered
    ]
    best = evidence.best_search
    if best is not None and best.recipe is not None and all(offer.run is not best for offer in offered):
        listed.append((f"search trial {best.number}, the search's best", best.recipe))
    return listed


def provenance(evidence: Evidence) -> Table:
    """Data, versions, hosts, seeds and time, as the database has them."""
    trials = evidence.trials
    rows: list[tuple[str, str]] = [
        ("data", f"{evidence.experiment.data}, split with seed {evidence.experiment.seed}"),
        ("data SHA-256", evidence.fingerprint),
        ("training examples", f"{evidence.workload.n_train:,}"),
    ]
    versions = [_recorded(str(text)) for text in dict.fromkeys(trials["versions"].dropna())]
    for found in dict.fromkeys(_named(each, machine=False) for each in versions):
        rows.append(("versions", found))
    rows.append(("hosts", _listed(trials["host"])))
    for found in dict.fromkeys(_named(each, machine=True) for each in versions):
        rows.append(("processor", found or "not recorded, nor its cores and the threads of a worker"))
    rows.append(("devices", _listed(trials["device"])))
    rows.append(("worker processes", f"{trials['owner'].dropna().nunique()} in all"))
    for phase, part in trials[trials["seed"].notna()].groupby("phase", sort=False):
        rows.append((f"seeds, {phase}", _ranges(sorted({int(seed) for seed in part["seed"]}))))
    ended = trials[trials["outcome"].notna()]
    rows.append(("trials", f"{len(ended)} ended of {len(trials)} started or planned"))
    rows.append(("training time", f"{_minutes(trials['train_seconds'])}, evaluation left out"))
    rows.append(("trials' wall time", _minutes(trials["wall_seconds"])))
    started, finished = trials["started"].min(), trials["finished"].max()
    if pd.notna(started) and pd.notna(finished):
        rows.append(("from, to (UTC)", f"{_when(float(started))} to {_when(float(finished))}"))
    cells = [[Cell(key), Cell(value)] for key, value in rows]
    caption = "Where these numbers come from, as recorded in the database."
    titles = ("what", "value")
    return Table("provenance-facts", caption, titles, cells, words=titles, sortable=False)


#: What of a trial's versions is the machine it ran on, in words; trials of before have none of it.
MACHINE = {
    "processor": "{}",
    "cores": "cores: {}",
    "threads": "torch threads a worker: {}",
    "accelerator": "{}",
    "bf16": "{}",
}


def _recorded(text: str) -> dict[str, Any]:
    """What a trial recorded of its versions and machine; the text as it is where another program wrote it."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    return found if isinstance(found, dict) else {"unreadable:": text[:200]}


def _named(recorded: dict[str, Any], *, machine: bool) -> str:
    """The versions that a trial was run with, or (`machine`) on what; "" where that is not recorded."""
    if machine:
        return ", ".join(form.format(recorded[key]) for key, form in MACHINE.items() if key in recorded)
    return ", ".join(f"{key} {value}" for key, value in recorded.items() if key not in MACHINE)


def _listed(values: pd.Series) -> str:
    return ", ".join(sorted(str(value) for value in values.dropna().unique())) or "none yet"


def _ranges(seeds: list[int]) -> str:
    """Runs of whole numbers: "0–29, 40"."""
    parts: list[list[int]] = []
    for seed in seeds:
        if parts and seed == parts[-1][1] + 1:
            parts[-1][1] = seed
        else:
            parts.append([seed, seed])
    return ", ".join(str(a) if a == b else f"{a}–{b}" for a, b in parts)


def _minutes(seconds: pd.Series) -> str:
    total = float(seconds.dropna().sum())
    return (
        f"{total:.0f} s"
        if total < 120
        else f"{total / 60:.1f} min"
        if total < 7200
        else f"{total / 3600:.1f} h"
    )


def _when(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")
