"""Tables for the terminal."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.table import Table

from study.analysis.advice import advice
from study.analysis.arm import Measure, sorted_arms
from study.analysis.comparison import Comparison
from study.analysis.curve_notes import curve_notes
from study.analysis.findings import Findings, bits
from study.analysis.notes import notes
from study.analysis.sentences import no_target, sentences, verdict_sentences
from study.analysis.standing import Standing
from study.analysis.words import AT_MOST, DASH, examples_of, number, p_value, speed_up_of
from study.cli.terminal import plural
from study.design.experiment import Experiment
from study.design.phases import FINALISTS, GUIDED_ROUNDS
from study.protocol.plan import cut_to_fit, describe_plan
from study.protocol.stored import stored
from study.statistics.family import TYPICAL_SPREAD, effect_in_reach
from study.statistics.verdicts import Verdict
from study.store.records import counts
from study.store.store import Store
from study.terms import Outcome, Phase
from vae.images import in_words

if TYPE_CHECKING:  # pandas, scipy.stats and torch, which tables do without
    from study.analysis.from_curves import FromCurves
    from study.analysis.replayed import Replayed
    from study.place import Place
    from vae.data.dataset import Dataset

#: Verdicts for a terminal of 80 columns.
_SHORT = {
    Verdict.UNDECIDED: ("n.d.", "not distinguishable"),
    Verdict.UNRELIABLE: ("unrel.", "too many seeds never reach the target"),
    Verdict.NEVER: ("never", "none does"),
    Verdict.NOT_TUNED: ("untuned", "not tuned: no coarse point reached the tuning target"),
    Verdict.UNRELIABLE_BASELINE: ("base?", "the baseline often misses it"),
    Verdict.NOT_MEASURED: ("open", "not measured yet"),
}


def print_plan(
    console: Console,
    experiment: Experiment,
    data: Dataset,
    place: Place,
    minutes: float,
    finished: Counter[str],
    spread: float | None = None,
) -> None:
    """What will run, where, and for about how long. `minutes` are those of the whole plan, `finished` the trials by
    phase that an earlier run has done, `spread` the coefficient of variation of examples to target over its calibration
    seeds; None where there is none yet."""
    plan = describe_plan(experiment)
    total = sum(plan.values())
    left = total - sum(min(n, finished[phase]) for phase, n in plan.items())
    console.print(
        f"{experiment.name}: {data.name}, {len(data.train)} train / {len(data.valid)} validation / "
        f"{len(data.test)} test {in_words(data.shape)}; tau {experiment.budget:g} epochs; "
        f"{plural(place.workers, 'worker')} x {plural(place.threads, 'thread')}; {place.device}",
        soft_wrap=True,
    )
    if experiment.arms:
        finals = (
            f", the best {FINALISTS} on {experiment.tune_seeds} seeds" if experiment.has_finalists else ""
        )
        if experiment.guided:
            finals = f" and {GUIDED_ROUNDS} guided rounds"
        console.print(
            f"arms: baseline, {', '.join(experiment.arms)}; K = {experiment.tune_trials} tuning points{finals}, "
            f"S = {experiment.seeds} seeds, R = {experiment.blocks}",
            soft_wrap=True,
        )
        if experiment.guided and not experiment.is_aa:
            found = effect_in_reach(
                experiment.seeds,
                experiment.blocks,
                len(experiment.arms),
                spread=spread or TYPICAL_SPREAD,
                margin=experiment.margin,
            )
            at = f"a spread between seeds of {TYPICAL_SPREAD:.0%}"
            if spread:
                at = f"the calibration seeds' spread of {spread:.0%}"
            reach = (
                f"A true speed-up of {found:.2f}x or more is"
                if math.isfinite(found)
                else "No speed-up can be"
            )
            console.print(
                f"{reach} found with 80 % power, at {at}; more --seeds find smaller ones.", soft_wrap=True
            )
    for line in cut_to_fit(experiment, experiment.workload(len(data.train))):
        console.print(line, soft_wrap=True, markup=False)
    parts = ", ".join(f"{n} {phase}" for phase, n in plan.items() if n)
    parts += ", and then the combined arm" if experiment.combine else ""
    done = f"; {total - left} of them are done, the others take" if left < total else ","
    about = f"{done} at most about {max(minutes * left / max(total, 1), 0.1):.1f} minutes of training"
    console.print(
        f"{total} trials ({parts}){about if left else '; all of them are done'}",
        soft_wrap=True,
    )


def print_experiments(console: Console, store: Store) -> None:
    """One line an experiment."""
    names = store.experiments()
    if not names:
        console.print(f"No experiment in {store.database.name} yet. `python -m study run` makes one.")
        return
    table = Table("name", "data", "arms", "trials finished", "unfinished")
    for name in names:
        experiment = stored(store, name).experiment
        parts = counts(store, name)
        finished, unfinished = sum(c.finished for c in parts), sum(c.running + c.waiting for c in parts)
        arms = str(len(experiment.arms) + 1) if experiment.arms else DASH
        table.add_row(name, experiment.data, arms, str(finished), str(unfinished))
    console.print(table)


def print_search(console: Console, standing: Standing) -> None:
    """The search's outcomes, its best trials, and how to use the best one where nothing is compared."""
    searched = [run for run in standing.begun if run.phase == Phase.SEARCH]
    if not searched:
        return
    outcomes = Counter(run.outcome or "unfinished" for run in searched).most_common()
    console.print(
        f"\nSearch: {plural(len(searched), 'trial')} ({', '.join(f'{n} {word}' for word, n in outcomes)})"
    )
    reasons = Counter(run.reason for run in searched if run.outcome == Outcome.FAILED and run.reason)
    for reason, n in reasons.most_common(3):
        console.print(f"{n} failed: {reason}")
    best = standing.state.search_ranked[:5]
    if not best:
        return
    fields = dict.fromkeys(field for run in searched for field in run.params)
    dimensions = standing.workload.dimensions
    losses = ["valid loss", "bits per dim"] if dimensions else ["valid loss"]
    table = Table("trial", *losses, "parameters", box=box.SIMPLE_HEAD)
    for run in best:
        told = [
            f"{run.best_loss:.3f}",
            *([number(bits(run.best_loss, dimensions), ".4f")] if dimensions else []),
        ]
        shown = (f"{field} {_cell(run.params[field])}" for field in fields if field in run.params)
        table.add_row(str(run.number), *told, ", ".join(shown))
    console.print(table)
    if standing.comparison is None:
        print_use(console, standing)


def print_use(console: Console, standing: Standing) -> None:
    """What to use, with the commands to copy: a command is one line, however wide the terminal is."""
    advised = advice(standing)
    if advised is None:
        return
    console.print(advised.sentence)
    for command in advised.commands:
        console.print(f"  {command}", soft_wrap=True)


def print_comparison(console: Console, standing: Standing) -> None:
    """The answer in sentences and what to use, then the forest table and the validity notes."""
    comparison = standing.comparison
    if comparison is None:
        return
    if comparison.target is None:
        said = no_target(comparison) or "The target isn't calibrated yet: nothing to compare."
        console.print(f"\n{said}", markup=False)
        print_failures(console, standing)
        return
    console.print()
    for sentence in sentences(comparison):
        console.print(sentence)
    print_use(console, standing)
    console.print(
        f"\nTime to {comparison.terms.level(comparison.target)}, against the tuned baseline "
        f"({comparison.terms.intervals}):"
    )
    print_forest(console, comparison)
    if comparison.combined:
        print_combined(console, comparison)
    for key, words in (("capping", "Adaptive capping"), ("pruning", "Pruning in the search")):
        if key in comparison.savings:
            console.print(f"{words} saved {comparison.savings[key]:.0%} of its training examples.")
    print_notes(console, notes(comparison, standing.state))


def print_notes(console: Console, doubts: Sequence[str]) -> None:
    """The validity notes."""
    if doubts:
        console.print("\nValidity:")
        for note in doubts:
            console.print(f"- {note}")


def print_forest(console: Console, comparison: Findings) -> None:
    """The forest table, on a narrow terminal with what its short verdicts mean."""
    wide = console.width >= 120
    console.print(forest_table(comparison, wide))
    if not wide:
        words_said = {
            m.verdict for arm in comparison.arms for m in (arm.examples, arm.seconds) if m is not None
        }
        if not comparison.has_seconds:
            words_said = {arm.examples.verdict for arm in comparison.arms if arm.examples is not None}
        legend = [f"{short}: {words}" for verdict, (short, words) in _SHORT.items() if verdict in words_said]
        if any(examples_of(arm).startswith(AT_MOST) for arm in comparison.arms):
            legend.append(f"{AT_MOST}: a miss takes tau or more")
        if legend:
            console.print("; ".join(legend))


def print_curves(console: Console, found: FromCurves) -> None:
    """The answer from curves in sentences, the forest table and the validity notes."""
    comparison, terms = found.comparison, found.comparison.terms
    assert comparison.target is not None
    console.print()
    for sentence in verdict_sentences(comparison):
        console.print(sentence)
    console.print(
        f"\nTime to {terms.level(comparison.target)}, against {terms.baseline} ({terms.intervals}):"
    )
    print_forest(console, comparison)
    print_notes(console, curve_notes(found))


def print_failures(console: Console, standing: Standing) -> None:
    """Which trials went wrong, why, and how often."""
    reasons: dict[tuple[str, str, str], Counter[str]] = {}
    for run in standing.went_wrong:
        key = (run.arm, run.phase, run.outcome or Outcome.FAILED)
        reasons.setdefault(key, Counter())[run.reason or ""] += 1
    for (arm, phase, outcome), counted in reasons.items():
        # Trials fail for few reasons; each that diverges or collapses has numbers of its own.
        shown = counted.most_common(None if outcome == Outcome.FAILED else 1)
        for reason, n in shown:
            n = n if outcome == Outcome.FAILED else counted.total()
            such = "" if len(shown) == len(counted) else " such as"
            console.print(
                f"{arm}, {phase}: {n} {outcome}{f'{such}: {reason}' if reason else ''}", markup=False
            )


def forest_table(comparison: Findings, wide: bool) -> Table:
    """Arm, hits, speed-up in examples and in seconds with 95 % intervals and verdicts; with `wide` also
    epochs to target and the adjusted p."""
    clock = comparison.terms.clock
    table = Table(box=None, pad_edge=False, padding=(0, 2 if wide else 1, 0, 0))
    table.add_column("arm", overflow="fold")  # a long name takes two lines; a figure is never cut
    table.add_column("hits", no_wrap=True, justify="right")
    if wide:
        in_epochs = any(arm.epochs is not None for arm in comparison.arms) or clock == "examples"
        table.add_column("epochs" if in_epochs else clock, no_wrap=True, justify="right")
        table.add_column("adjusted p", no_wrap=True, justify="right")
    has_seconds = comparison.has_seconds
    for unit in (clock, "seconds") if has_seconds else (clock,):
        table.add_column(f"speed-up, {unit}", no_wrap=True)
        table.add_column(f"in {unit}" if wide else "", no_wrap=not wide)
    for arm in sorted_arms(comparison.arms):
        cells = [arm.arm, f"{arm.hits}/{arm.seeds}"]
        if wide:
            took = number(arm.epochs, ".2f") if in_epochs else number(arm.mean_examples)
            cells += [took, p_value(arm.p_adjusted)]
        for measure in (arm.examples, arm.seconds) if has_seconds else (arm.examples,):
            if arm.is_baseline:
                cells += ["1", ""]
            elif measure is None:
                cells += [DASH, DASH]
            else:
                told = examples_of(arm) if measure is arm.examples else speed_up_of(measure)
                cells += [told, _verdict(measure, wide)]
        table.add_row(*cells)
    return table


def _verdict(measure: Measure, wide: bool) -> str:
    return measure.words if wide else _SHORT.get(measure.verdict, (str(measure.verdict),))[0]


def print_combined(console: Console, comparison: Comparison) -> None:
    """The combine block's table; whether the parts add up is among the sentences."""
    table = Table(title="Combined, on fresh seeds (a family of its own)", title_justify="left", box=None)
    wide = console.width >= 120
    for column in ("arm", "hits", "speed-up, examples", "adj. p", "verdict"):
        table.add_column(column, no_wrap=True)
    for arm in comparison.combined:
        table.add_row(
            arm.arm,
            f"{arm.hits}/{arm.seeds}",
            speed_up_of(arm.examples),
            p_value(arm.examples.p_adjusted),
            _verdict(arm.examples, wide),
        )
    console.print(table)


def replay_table(found: Replayed, workers: int) -> Table:
    """Every policy with that many simulated workers, the cheapest first; the recommended one has a star. Narrow enough
    for the names at 80 columns."""
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("policy", overflow="fold")
    clock = found.tapes.clock
    titles = ("makespan", "regret,\nmedian", "90th\npercentile", "best\ncut")
    for title in (f"{clock}\nused", "seconds\nused", *titles):
        table.add_column(title, justify="right", no_wrap=True)
    for s in sorted(found.with_workers(workers), key=lambda s: s.share):
        star = " *" if s is found.chosen else ""
        unit = "" if s.policy.kind.selects_by_value else f", in {clock}"
        table.add_row(
            f"{s.policy.name}{unit}{star}",
            f"{s.share:.0%}",
            f"{s.seconds_share:.0%}",
            f"{s.makespan:,.0f} s",
            f"{s.regret:.3g}",
            f"{s.regret_p90:.3g}",
            f"{s.best_cut:.1%}",
        )
    return table


def _cell(value: Any) -> str:
    if value is None or isinstance(value, float):
        return number(value)
    return str(value)
