"""The report's numbers and words: the tables say what was estimated, and how to run it again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
import pytest
from report_data import (
    FEW,
    NAME,
    NEVER,
    UNRELIABLE,
    query,
    store_experiment,
)

from study.analysis import frames as tables
from study.analysis.arm import UNMEASURED, ArmResult, CombinedArm, Kind, Measure, find
from study.analysis.evidence import Evidence, read
from study.analysis.standing import speeds
from study.design.build import read_toml
from study.design.experiment import Experiment
from study.design.space import Dimension
from study.figures import forest as figures_forest
from study.figures.panel import Figure, Panel
from study.report import words
from study.report.blocks import Section, Table
from study.report.markdown import markdown_text
from study.report.markdown import render as render_markdown
from study.report.sections import sections
from study.report.tables import arms_table, explained_table, failures_table
from study.statistics.speed_up import Estimate
from study.statistics.verdicts import Verdict
from study.store.records import Timing
from study.store.store import Store

pytest_plugins = ["tiny_study", "report_fixtures"]


def with_ratio(measure: Measure | None, ratio: float, low: float, high: float) -> Measure:
    """The measure with another ratio and interval."""
    assert measure is not None
    return replace(measure, estimate=replace(measure.estimate, ratio=ratio, low=low, high=high))


class TestNumbers:
    def test_forest_numbers_are_the_table_s(self, made_up: Evidence) -> None:
        """Every marker of the forest plot stands at the ratio its row of the table and its note print."""
        assert made_up.comparison is not None
        shown = {row[0].text: row[3].text for row in arms_table(made_up.comparison).rows}
        figure = figures_forest.forest(figures_forest.arm_rows(made_up.comparison.arms))
        names = figure.layout.yaxis.ticktext
        notes = {names[int(note.y)]: note.text for note in figure.layout.annotations}
        found = {}
        for trace in figure.data:
            if trace.mode == "markers" and not any("open" in symbol for symbol in trace.marker.symbol):
                found |= {names[y]: x for x, y in zip(trace.x, trace.y, strict=True)}
        whole = {arm for arm, text in shown.items() if "[" in text}
        assert set(found) == whole
        for arm, ratio in found.items():
            assert f"{ratio:.2f}x [" in shown[arm]
            assert shown[arm] in notes[arm]

    def test_censored_arms_keep_their_row(self, made_up: Evidence) -> None:
        """An arm that misses on some seed is an open symbol with its hits beside it; one that never hits stands
        where the axis begins."""
        assert made_up.comparison is not None
        arms = made_up.comparison.arms
        figure = figures_forest.forest(figures_forest.arm_rows(arms))
        names = list(figure.layout.yaxis.ticktext)
        assert len(names) == len(arms) - 1
        open_rows = {
            names[y]: (symbol, x)
            for trace in figure.data
            if trace.mode == "markers"
            for x, y, symbol in zip(trace.x, trace.y, trace.marker.symbol, strict=True)
            if "open" in symbol
        }
        assert {UNRELIABLE, NEVER} <= set(open_rows)
        low, high = figure.layout.xaxis.range
        assert open_rows[NEVER][0] == "triangle-left-open"
        assert low < np.log10(open_rows[NEVER][1]) < low + 0.05 * (high - low)
        unreliable = find(arms, UNRELIABLE)
        assert unreliable is not None
        notes = [note.text for note in figure.layout.annotations]
        assert f"at most {unreliable.at_most:.2f}x ({unreliable.hits} of 5 hit)" in notes
        in_seconds = figures_forest.forest(figures_forest.arm_rows(arms, "seconds"), "seconds")
        notes = [note.text for note in in_seconds.layout.annotations]
        assert f"{unreliable.hits} of 5 reach it" in notes
        assert "none of 5 reaches it" in notes

    def test_unmeasured_arms_keep_their_row(self, made_up: Evidence) -> None:
        """An arm without a run says so in the forest plot."""
        assert made_up.comparison is not None
        waiting = ArmResult("he", "initialisation", Kind.TECHNIQUE, 0, 0, 5, examples=UNMEASURED)
        arms = [waiting if arm.arm == "he" else arm for arm in made_up.comparison.arms]
        figure = figures_forest.forest(figures_forest.arm_rows(arms))
        notes = [note.text for note in figure.layout.annotations]
        assert notes.count("not measured yet") == 1

    @pytest.mark.parametrize(
        ("ratio", "low", "high"), [(29.0, 26.0, 32.0), (0.02, 0.001, 0.4), (1.0, 1e-9, 1e9)]
    )
    def test_forest_axis_holds_every_ratio(
        self, made_up: Evidence, ratio: float, low: float, high: float
    ) -> None:
        """However far out, a ratio is inside the plot; only bars may leave it."""
        assert made_up.comparison is not None
        rows = [
            row._replace(measure=with_ratio(row.measure, ratio, low, high)) if row.arm == "he" else row
            for row in figures_forest.arm_rows(made_up.comparison.arms)
        ]
        figure = figures_forest.forest(rows)
        assert figure.layout.xaxis.range[0] < np.log10(ratio) < figure.layout.xaxis.range[1]
        assert figure.layout.xaxis.range[1] - figure.layout.xaxis.range[0] < 4

    def test_seconds_are_examples_over_measured_throughput(self) -> None:
        """All arms are on the baseline's clock: its median speed times the arm's ratio to the baseline beside it."""
        timings = [
            Timing("a", 0, 50.0, 100.0, None),
            Timing("a", 1, 60.0, 120.0, None),
            Timing("b", 0, 10.0, 100.0, None),
            Timing("b", 1, 20.0, 200.0, None),
        ]
        assert speeds(timings) == pytest.approx({"baseline": 110.0, "a": 55.0, "b": 11.0})

    def test_bands_hold_the_target_where_seeds_reach_it(self, made_up: Evidence) -> None:
        """The median crosses the target within the seeds' examples to target."""
        own = made_up.bands[made_up.bands["arm"] == "baseline"]
        seeds = made_up.seeds[made_up.seeds["arm"] == "baseline"]
        crossing = own[own["median"] <= 25.0]["examples"].iloc[0]
        assert seeds["examples"].min() * 0.9 <= crossing <= seeds["examples"].max() * 1.1
        assert (own["low"] <= own["median"]).all()
        assert (own["median"] <= own["high"]).all()

    def test_survival_ends_at_the_share_that_misses(self, made_up: Evidence) -> None:
        """Kaplan-Meier curves end at 0 where all seeds hit and at 1 where none does."""
        last = made_up.survival.groupby("arm")["survival"].last()
        assert last["baseline"] == 0.0
        assert last[NEVER] == 1.0

    def test_best_so_far_never_rises(self, made_up: Evidence) -> None:
        """The tuning's best is the least of the hits so far, and the winner has it."""
        for _, own in made_up.tuning.groupby("arm"):
            best = own["best"].dropna().to_numpy()
            assert (np.diff(best) <= 0).all()
            if len(best):
                assert own[own["won"]]["examples"].iloc[0] == best[-1] == own[own["hit"]]["examples"].min()

    @pytest.mark.parametrize(("value", "at"), [(1e-4, 0.0), (1e-2, 1.0), (1e-3, 0.5)])
    def test_position_is_on_the_dimension_s_scale(self, value: float, at: float) -> None:
        """Where a winner lies is measured on a log scale where the range is one."""
        assert tables.position(Dimension(low=1e-4, high=1e-2, log=True), value) == pytest.approx(at)

    def test_savings_are_shares_of_tau(self, made_up: Evidence) -> None:
        """Trials that all ran to tau saved nothing."""
        assert made_up.savings["saved"].abs().max() < 1e-2
        assert set(made_up.savings["part"]) == {"joint search", *FEW}

    def test_importance_names_its_evaluators(self, made_up: Evidence) -> None:
        """PED-ANOVA and several forests of fANOVA stand side by side, each with shares that add up to 1."""
        frame = made_up.importance
        assert frame.groupby("evaluator")["run"].nunique().to_dict() == {"PED-ANOVA": 1, "fANOVA": 3}
        assert frame.groupby(["evaluator", "run"])["importance"].sum().to_numpy() == pytest.approx(1.0)


class TestWords:
    def test_experiment_file_makes_the_same_experiment(self, made_up: Evidence, tmp_path: Path) -> None:
        """The TOML in the report, saved and read, is the experiment that was run."""
        path = tmp_path / "experiment.toml"
        path.write_text(words.experiment_toml(made_up), encoding="utf-8")
        assert Experiment.from_values(read_toml(path), "test") == made_up.experiment
        assert words.command(made_up) == f"python -m study run --file {NAME}.toml"

    @pytest.mark.parametrize(("arms", "trials", "verb"), [(["he"], 0, "compare"), ([], 3, "search")])
    def test_command_fits_the_experiment(self, new: Store, arms: list[str], trials: int, verb: str) -> None:
        """A search alone is run again by search, a comparison alone by compare."""
        store_experiment(new, arms=arms, search={"trials": trials})
        assert words.command(read(new, "new")) == f"python -m study {verb} --file new.toml"

    @pytest.mark.parametrize(
        ("seeds", "shown"),
        [([], ""), ([3], "3"), ([0, 1, 2, 5, 7, 8], "0–2, 5, 7–8"), ([30000, 30001], "30000–30001")],
    )
    def test_seeds_are_listed_as_runs(self, seeds: list[int], shown: str) -> None:
        """Every seed that was used can be read off the list."""
        assert words._ranges(seeds) == shown

    @pytest.mark.parametrize(
        ("recorded", "versions", "processor"),
        [
            ('{"torch": "2.13"}', "torch 2.13", "not recorded, nor its cores and the threads of a worker"),
            (
                '{"torch": "2.13", "processor": "EPYC", "cores": 2, "threads": 1}',
                "torch 2.13",
                "EPYC, cores: 2, torch threads a worker: 1",
            ),
            ("[1", "unreadable: [1", "not recorded, nor its cores and the threads of a worker"),
            ('"x"', 'unreadable: "x"', "not recorded, nor its cores and the threads of a worker"),
        ],
    )
    def test_provenance_names_the_machine(
        self, changed: Path, recorded: str, versions: str, processor: str
    ) -> None:
        """Processor, cores and threads are told where trials recorded them, said to be missing where not; what another
        program wrote there breaks nothing."""
        query(changed, f"UPDATE trial_run SET versions = '{recorded}'")
        with Store.open(f"sqlite:///{changed}", read_only=True) as store:
            told = {row[0].text: row[1].text for row in words.provenance(read(store, NAME)).rows}
        assert told["versions"] == versions
        assert told["processor"] == processor

    def test_every_arm_is_explained(self, made_up: Evidence) -> None:
        """Beside each arm stand what it changes and the catalogue's why."""
        rows = {row[0].text: [cell.text for cell in row] for row in explained_table(made_up).rows}
        assert list(rows) == made_up.arms
        for arm, (_, _, changes, why, _) in rows.items():
            technique = made_up.experiment.technique(arm)
            assert changes
            assert why
            if technique is not None:
                assert changes.startswith(technique.change)
                assert why == (technique.why or "–")

    def test_markdown_has_the_table_s_rows(self, made_up: Evidence) -> None:
        """The Markdown has every arm with the same numbers as the page, and nothing but text."""
        text = render_markdown(made_up)
        assert made_up.comparison is not None
        for row in arms_table(made_up.comparison).rows:
            assert "| " + " | ".join(markdown_text(cell.text) for cell in row) + " |" in text
        assert text == render_markdown(made_up)

    def test_combined_block_has_its_own_forest(self, made_up: Evidence) -> None:
        """The combination, its parts and leave-one-outs are drawn and tabled, and whether they add up is said."""
        assert made_up.comparison is not None
        e = Estimate(1.6, 1.4, 1.8, 0.47, 0.05, 4.0, 5, 1e-4)
        faster = Measure(e, (1.3, 1.9), Verdict.FASTER, p_adjusted=1e-4)
        names = ("combined", "he", "cosine", "combined-without-he", "combined-without-cosine")
        combined = [CombinedArm(arm, 5, 5, faster) for arm in names]
        addition = Estimate(0.91, 0.8, 1.03, -0.1, 0.05, 4.0, 5, 0.2)
        comparison = replace(made_up.comparison, combined=combined, addition=addition)
        (part,) = [
            part for part in sections(replace(made_up, comparison=comparison)) if part.id == "combined"
        ]
        figure, table = part.blocks
        assert isinstance(figure, Figure)
        assert sorted(figure.panels[0].figure.layout.yaxis.ticktext) == sorted(names)
        assert isinstance(table, Table)
        assert table.rows[0][2].text == "1.60x [1.40, 1.80]"
        assert table.rows[0][3].text == "< 0.001"
        assert "0.91x [0.80, 1.03]" in part.lead

    def test_failures_beyond_a_page_are_counted(self, changed: Path) -> None:
        """A long list of failures ends with how many more there are."""
        query(changed, "UPDATE trial_run SET outcome = 'failed', reason = 'x' WHERE phase = 'tune'")
        with Store.open(f"sqlite:///{changed}", read_only=True) as store:
            evidence = read(store, NAME)
            n = len(evidence.failures)
            shown = failures_table(evidence, most=n - 5)
        assert len(shown.rows) == n - 5 > 0
        assert "5 more are in the database" in shown.caption


def test_sections_are_plain_values(made_up: Evidence) -> None:
    """Compute, draw and write stay apart: a section holds frames' texts and figures, no HTML."""
    for part in sections(made_up):
        assert isinstance(part, Section)
        for block in part.blocks:
            if isinstance(block, Table):
                assert all("<b" not in cell.text for row in block.rows for cell in row)
            if isinstance(block, Figure):
                assert all(isinstance(p, Panel) and isinstance(p.figure, go.Figure) for p in block.panels)
