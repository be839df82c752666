"""The report's figures and pictures: axes, bands, sheets of images, and image files."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_data import (
    NAME,
)

from study.analysis.evidence import Evidence, read
from study.figures import arms as figures_arms
from study.figures import search as figures_search
from study.figures import theme
from study.figures.compose import composite
from study.figures.panel import Figure
from study.report import sections_search
from study.report.files import write_figures
from study.report.model import Gallery
from study.report.sections import sections
from study.store.store import Store
from vae.errors import UserError

pytest_plugins = ["tiny_study", "report_fixtures"]


def searched(losses: list[float], states: list[str]) -> pd.DataFrame:
    """Search trials as `study.analysis.search.searched` gives them, as far as figures ask."""
    outcomes = {"COMPLETE": "completed", "PRUNED": "pruned", "FAIL": "failed"}
    return pd.DataFrame(
        {
            "number": range(len(losses)),
            "seed": 0,
            "state": states,
            "outcome": [outcomes[state] for state in states],
            "best_valid_loss": losses,
            "best": losses,
            "changes": "",
        }
    )


class TestSearch:
    def test_the_axis_shows_where_good_trials_differ(self) -> None:
        """Complete trials from 24.7 to 35 among pruned ones near 45: the axis holds 24.7 to 26.7, and every other
        trial is an arrow at its upper edge."""
        losses = [24.7, 25.2, 25.6, 25.7, 26.0, 30.2, 35.3, *([44.0] * 8), math.inf, math.nan]
        states = ["COMPLETE"] * 7 + ["PRUNED"] * 8 + ["FAIL"] * 2
        figure = figures_search.history(searched(losses, states))
        bottom, top = figure.layout.yaxis.range
        assert bottom < 24.7
        assert 26.6 < top < 27.0
        (arrows,) = [trace for trace in figure.data if (trace.name or "").startswith("off the scale")]
        assert sorted(arrows.x) == list(range(5, 15))
        assert set(arrows.marker.symbol) == {"arrow-up"}
        assert all(bottom < y < top for y in arrows.y)
        seen = [x for trace in figure.data if trace.mode == "markers" for x, y in zip(trace.x, trace.y, strict=True)
                if y is not None]  # fmt: skip
        assert sorted(seen) == list(range(15))

    @given(
        st.lists(st.floats(-1e6, 1e6) | st.sampled_from([math.inf, math.nan]), min_size=1, max_size=30),
        st.data(),
    )
    def test_no_trial_with_a_loss_is_out_of_sight(self, losses: list[float], data: st.DataObject) -> None:
        """Whatever the losses, each finite one is drawn once and within the axis."""
        states = [data.draw(st.sampled_from(["COMPLETE", "PRUNED", "FAIL"])) for _ in losses]
        figure = figures_search.history(searched(losses, states))
        drawn = [y for trace in figure.data if trace.mode == "markers" for y in trace.y if y is not None]
        assert len(drawn) == sum(math.isfinite(loss) for loss in losses)
        if drawn:
            bottom, top = figure.layout.yaxis.range
            # Losses are drawn with five digits.
            slack = 1e-4 * max(abs(bottom), abs(top))
            assert all(bottom - slack <= y <= top + slack for y in drawn)


class TestFigures:
    @given(st.integers(1, 500), st.integers(2, 100))
    def test_thinning_keeps_both_ends(self, n: int, keep: int) -> None:
        """At most `keep` points remain, in order, with the first and the last."""
        kept = theme.thinned(n, keep)
        assert len(kept) <= keep
        assert kept[0] == 0
        assert kept[-1] == n - 1
        assert (np.diff(kept) > 0).all()

    @given(st.floats(1e-3, 1e6), st.floats(1.0, 1e4))
    def test_log_axes_have_ticks(self, low: float, factor: float) -> None:
        """Whatever its range, a log axis has a tick or more and holds its ends."""
        axis = theme.log_ticks(low, low * factor)
        assert axis["range"][0] <= np.log10(low)
        assert axis["range"][1] >= np.log10(low * factor) - 1e-9
        if factor > 1.6:
            assert axis["tickvals"]

    def test_diverged_seeds_leave_no_infinity(self) -> None:
        """A band whose quantiles are infinite is a gap in the figure, never an invalid number."""
        band = {"arm": ["baseline"] * 3, "examples": [10.0, 20.0, 30.0], "seconds": [1.0, 2.0, 3.0]}
        band |= {"median": [5.0, 4.0, np.inf], "low": [4.0, 3.0, 2.0], "high": [6.0, np.inf, np.inf]}
        seeds = pd.DataFrame(
            [{"arm": "baseline", "hit": False, "seed": 1, "examples": 30.0, "seconds": 3.0, "recipe": ""}]
        )
        (panel,) = figures_arms.learning_curves(pd.DataFrame(band), seeds, 3.5, lambda arm: arm)
        json.dumps([trace.to_plotly_json() for trace in panel.figure.data], allow_nan=False)
        assert panel.note == "0 of 1 seeds reach it"

    def test_grid_becomes_one_graph(self, made_up: Evidence) -> None:
        """In an image file a grid's panels are axes of one figure: all traces, none on another's axes."""
        (figure,) = [
            block
            for part in sections(made_up)
            for block in part.blocks
            if isinstance(block, Figure) and block.id == "survival-curves"
        ]
        joined = composite(figure)
        assert len(joined.data) == sum(len(panel.figure.data) for panel in figure.panels)
        assert {trace.xaxis for trace in joined.data} == {
            f"x{i or ''}" for i in [0, *range(2, len(figure.panels) + 1)]
        }
        domains = [joined.layout[f"xaxis{i}"].domain for i in range(2, len(figure.panels) + 1)]
        assert all(0 <= low < high <= 1 for low, high in domains)

    def test_images_need_kaleido(
        self, made_up_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Without kaleido the way out is named before anything is computed."""
        monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
        with (
            Store.open(f"sqlite:///{made_up_file}", read_only=True) as store,
            pytest.raises(UserError, match=r"pip install 'vae-study\[figures\]'"),
        ):
            write_figures(read(store, NAME), tmp_path / "figures", tmp_path, None)
        assert not (tmp_path / "figures").exists()

    def test_images_need_a_browser(
        self, made_up_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Without a browser the message names the package."""
        import kaleido
        from kaleido.errors import ChromeNotFoundError

        def absent(*args: Any, **options: Any) -> None:  # noqa: ARG001 - kaleido's
            raise ChromeNotFoundError

        monkeypatch.setattr(kaleido, "write_fig_from_object_sync", absent)
        with (
            Store.open(f"sqlite:///{made_up_file}", read_only=True) as store,
            pytest.raises(UserError, match="Debian: chromium"),
        ):
            write_figures(read(store, NAME), tmp_path / "figures", tmp_path, None)


def test_a_table_s_model_has_no_images() -> None:
    """The words beside a model of examples that can't be drawn say nothing of images."""
    latent = pd.DataFrame({"x": [0.0, 1.0], "y": [1.0, 0.0], "label": [math.nan, math.nan]})
    gallery = Gallery(
        recipe_json="{}",
        reconstructions=None,
        samples=None,
        walk=None,
        walk_dimensions=(),
        walk_start="",
        latent=latent,
        axes=("z 1", "z 2"),
        active_units=2,
        missing=(),
    )
    (block,) = sections_search._pictures(gallery)
    assert isinstance(block, Figure)
    assert "examples" in block.caption
    assert "image" not in block.caption + block.panels[0].figure.to_json()
