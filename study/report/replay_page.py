"""The page of a replay: what each policy used and lost, and which to use."""

from __future__ import annotations

from pathlib import Path

from study.analysis.replayed import Replayed, notes, sentences
from study.curves.recorded import described
from study.figures.panel import single
from study.figures.replay import pareto
from study.replay.score import Score
from study.report.blocks import Cell, Notes, Section, Table, number
from study.report.page import assemble
from vae.files import write_bytes


def write_replay(found: Replayed, path: Path) -> Path:
    """Write the HTML page to `path`, whole or not at all. Raises FailureError where it can't be written."""
    return write_bytes(path, render(found).encode())


def render(found: Replayed) -> str:
    """The page's HTML; the same for the same curves and settings."""
    workers = list(dict.fromkeys(found.settings.workers))
    return assemble(
        name=found.recording.name,
        data="recorded curves",
        first=_answer(found),
        sections=[
            _validity(found),
            *(_workers(found, count) for count in workers[1:]),
            _looks(found),
            _schedules(found),
        ],
        answer=sentences(found),
        workload=f"{'; '.join(described(found.recording.curves))}.",
        sure=notes(found)[:2],
        missing=[],
        families=[],
    )


def _answer(found: Replayed) -> Section:
    tapes, first = found.tapes, found.with_workers(found.first_workers)
    graph = pareto(first, found.chosen, found.settings.tolerance * tapes.gap, tapes.clock)
    caption = (
        "Left is cheaper, low is safer; the dotted line is the front, no policy beats those on it in both. The ring is "
        "the recommended one, the shaded band the regret that counts as small. Bars: 95 % over orders of arrival."
    )
    title = f"What was used, and what it cost, with {_count(found.first_workers)}"
    figure = single("pareto", "pareto", title, caption, graph)
    return Section(
        "answer", "What would stopping early have saved?", blocks=[figure, _table(found, found.first_workers)]
    )


def _table(found: Replayed, workers: int) -> Table:
    tapes = found.tapes
    titles: tuple[str, ...] = ("policy", "looks", f"{tapes.clock} used, %", "seconds used, %", "makespan, s")
    titles += ("regret, median", "regret, 90th percentile", "best run cut, %", "how to use it")
    rows = []
    for s in sorted(found.with_workers(workers), key=lambda s: s.share):
        strong = s.policy is found.chosen.policy
        rows.append(
            [
                Cell(s.policy.name, s.policy.name, strong=strong),
                Cell(str(s.policy.kind), str(s.policy.kind)),
                number(100 * s.share, ".0f"),
                number(100 * s.seconds_share, ".0f"),
                number(s.makespan, ",.0f"),
                number(s.regret),
                _with_interval(s),
                number(100 * s.best_cut, ".1f"),
                Cell(s.policy.use, s.policy.use),
            ]
        )
    caption = (
        f"Every policy with {_count(workers)}, the cheapest first; the regret is what was found less the best run, "
        "which counts as cut where it was ended early and what was found is worse."
    )
    return Table(f"policies-{workers}", caption, titles, rows, words=("policy", "looks", "how to use it"))


def _with_interval(s: Score) -> Cell:
    low, high = s.regret_p90_interval
    return Cell(f"{s.regret_p90:.4g} [{low:.4g}, {high:.4g}]", s.regret_p90)


def _count(workers: int) -> str:
    return "one worker" if workers == 1 else f"{workers} workers"


def _validity(found: Replayed) -> Section:
    lead = "What a careful reader would ask about, the weightiest first."
    return Section("validity", "How far to trust this", lead, [Notes(notes(found))])


def _workers(found: Replayed, workers: int) -> Section:
    lead = (
        "Workers that run side by side know less of one another when they decide: a run is compared with those that "
        "have ended by then, on the recorded seconds."
    )
    title = f"With {_count(workers)} side by side"
    return Section(f"workers-{workers}", title, lead, [_table(found, workers)])


def _looks(found: Replayed) -> Section:
    titles = (
        "share of the clock, %",
        found.tapes.clock,
        "rank correlation with the end",
        "rank of the best run",
    )
    rows = [
        [
            number(100 * e.share, ".0f"),
            number(e.clock, ",.0f"),
            number(e.rank_correlation, ".2f"),
            number(e.best_rank),
        ]
        for e in found.looks
    ]
    caption = "Spearman's correlation of the lowest values so far with the lowest in the end, over all runs."
    lead = "Where an early look ranks the runs as the end does, stopping early is safe."
    return Section("looks", "How early one can tell", lead, [Table("looks", caption, titles, rows, words=())])


def _schedules(found: Replayed) -> Section:
    title = "Schedules with a horizon"
    if not found.unfair:
        return Section(
            "schedules",
            title,
            missing=(
                "The better half doesn't have both, runs with such a schedule and without, or schedules "
                "aren't known."
            ),
        )
    titles = ("policy", "cut, with a horizon, %", "cut, without, %")
    rows = [
        [Cell(u.policy, u.policy), number(100 * u.with_horizon, ".0f"), number(100 * u.without, ".0f")]
        for u in found.unfair
    ]
    caption = "Of the runs better than the median: in which share of orders they are ended early."
    lead = "A learning rate that falls towards a horizon buys its loss late; who looks early sees it at its worst."
    return Section("schedules", title, lead, [Table("schedules", caption, titles, rows, words=("policy",))])
