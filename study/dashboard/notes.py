"""What the dashboard's notes say: the answer in words and one table, as Markdown that nothing breaks out of."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from study.analysis.advice import advice
from study.analysis.arm import Measure, find, sorted_arms
from study.analysis.comparison import Comparison
from study.analysis.evidence import Evidence
from study.analysis.findings import nats
from study.analysis.frames import ends
from study.analysis.notes import notes
from study.analysis.sentences import no_target, sentences
from study.analysis.words import DASH, examples_of, p_value, speed_up_of
from study.dashboard.board import Image
from study.report.markdown import markdown_text
from study.terms import SEARCH


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; the cells are Markdown already."""
    # The dashboard draws no lines between columns: an en space, which Markdown keeps, holds them apart.
    first, *others = ["| " + "\u2002 | ".join(line) + " |" for line in (header, *rows)]
    return "\n".join([first, "| --- " * len(header) + "|", *others])


def comparison_note(evidence: Evidence, comparison: Comparison) -> str:
    """The comparison's answer, verdict table and validity notes."""
    experiment = comparison.experiment
    parts = [f"## {markdown_text(experiment.name)}: which techniques train faster?"]
    parts += _answer(evidence, comparison)
    if comparison.target is not None:
        target = nats(comparison.target, evidence.workload.dimensions)
        parts.append(
            f"Time to a validation loss of **{target}**, against the tuned baseline: speed-ups "
            f"({comparison.terms.intervals})."
        )
        parts.append(verdict_table(comparison))
        parts.append("The forest plot, the survival curves and the learning curves are under *Analytics*.")
    doubts = notes(comparison, evidence.state)
    if doubts:
        parts.append("### How far to trust this")
        parts.append("\n".join(f"- {markdown_text(note)}" for note in doubts))
    return "\n\n".join(parts)


def verdict_table(comparison: Comparison) -> str:
    """One row an arm: hits, speed-up in examples and in seconds with intervals, verdicts."""
    header = ["arm", "hits", "speed-up, examples", "verdict", "adjusted p", "speed-up, seconds", "verdict"]
    rows = []
    for arm in sorted_arms(comparison.arms):
        cells = [markdown_text(arm.arm), f"{arm.hits}/{arm.seeds}"]
        if arm.is_baseline:
            cells += ["1x", "baseline", DASH, "1x", "baseline"]
        else:
            p = markdown_text(p_value(arm.p_adjusted))
            cells += [
                *_verdict(examples_of(arm), arm.examples),
                p,
                *_verdict(speed_up_of(arm.seconds), arm.seconds),
            ]
        rows.append(cells)
    return table(header, rows)


def arm_note(comparison: Comparison, arm: str, baseline_id: int) -> str:
    """One arm's own line of the verdict table, and the way to the others, the study with `baseline_id`."""
    text = f"## {markdown_text(arm)}"
    technique = comparison.experiment.technique(arm)
    if technique is not None:
        text += f"\n\n{markdown_text(technique.family.capitalize())}. {markdown_text(technique.why)}"
    result = find(comparison.arms, arm)
    if result is not None and comparison.target is not None:
        text += f"\n\nTarget reached on {result.hits} of {result.seeds} seeds."
        for unit, shown, measure in (
            ("examples", examples_of(result), result.examples),
            ("seconds", speed_up_of(result.seconds), result.seconds),
        ):
            told, verdict = _verdict(shown, measure)
            text += f"\n\nIn {unit}: **{verdict}**{'' if shown == DASH else f', {told}'}."
    whole = markdown_text(f"{comparison.experiment.name}/baseline")
    # Names are never links: the dashboard's dark mode draws links dark blue.
    return f"{text}\n\nAll arms side by side: the note of {whole} ([open](/dashboard/studies/{baseline_id}/note))."


def search_note(evidence: Evidence, study_id: int, images: Iterable[Image], missing: str) -> str:
    """The joint search's state and best trial, after the comparison's answer where there is one.

    `missing` says why a picture isn't among `images`."""
    comparison, best, trials = evidence.comparison, evidence.best_search, evidence.trials
    trials = trials[trials["arm"] == SEARCH]
    parts = [f"## {markdown_text(evidence.name)}: joint search"]
    outcomes = ends(trials).value_counts()
    listed = ", ".join(f"{count} {markdown_text(word)}" for word, count in outcomes.items())
    parts.append(f"{len(trials)} trials: {listed}.")
    if best is not None:
        told = nats(best.best_loss, evidence.workload.dimensions)
        parts.append(
            f"Best so far: trial {best.number}, validation loss **{told}** "
            f"([open](/dashboard/studies/{study_id}/trials?numbers={best.number}))."
        )
        parts += [f"{image.title}:\n\n![{image.title}]({image.address})" for image in images]
        if missing:
            parts.append(f"Not all pictures can be shown: {markdown_text(missing)}.")
    if comparison is not None:
        parts += ["## Which techniques train faster?", *_answer(evidence, comparison)]
        if comparison.target is not None:
            parts.append(verdict_table(comparison))
    if best is not None and best.recipe is not None:
        parts.append(f"## The best trial's recipe\n\n```toml\n{best.recipe.to_toml().strip()}\n```")
    return "\n\n".join(parts)


def _answer(evidence: Evidence, comparison: Comparison) -> list[str]:
    if comparison.target is None:
        why = no_target(comparison) or "The target isn't calibrated yet: nothing to compare so far."
        return [markdown_text(why)]
    said = [markdown_text(sentence) for sentence in sentences(comparison)]
    advised = advice(evidence)
    if advised is not None:
        said += [markdown_text(advised.sentence), "\n".join(f"    {command}" for command in advised.commands)]
    return said


def _verdict(shown: str, measure: Measure | None) -> tuple[str, str]:
    """Speed-up as it is shown, and the verdict, as Markdown."""
    return markdown_text(shown), DASH if measure is None else markdown_text(measure.words)
