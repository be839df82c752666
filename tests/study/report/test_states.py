"""Reports of experiments that are empty, unfinished or failed, or of which something is missing."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import optuna
import pytest
from report_data import (
    NAME,
    query,
    report_of,
    store_experiment,
    text_of,
)

from study.analysis.evidence import read
from study.report.page import render
from study.store.locations import Local
from study.store.store import Store

pytest_plugins = ["tiny_study", "report_fixtures"]


class TestStates:
    @pytest.mark.parametrize(
        ("values", "said"),
        [
            ({}, ["No trial has been run yet."]),
            (
                {"search": {"trials": 3}},
                ["No search trial has ended yet.", "0 of 3 search trials have ended."],
            ),
            ({"arms": ["he"]}, ["the target is not calibrated", "0 of 16 tuning trials", "has been timed"]),
            (
                {"arms": ["he"], "target": 30.0},
                ["0 of 50 confirmation runs", "No confirmation run has ended yet."],
            ),
        ],
        ids=["nothing planned", "search only", "comparison", "given target"],
    )
    def test_empty_experiment_says_what_is_missing(
        self, new: Store, values: dict[str, Any], said: list[str]
    ) -> None:
        """Before the first trial the page is whole and names what it waits for."""
        store_experiment(new, **values)
        text = text_of(render(read(new, "new"), Path("nowhere"), None))
        assert all(sentence in text for sentence in said), text

    def test_waiting_and_running_trials_are_counted(self, new: Store) -> None:
        """Trials that only wait are neither failures nor results."""
        store_experiment(new, search={"trials": 4})
        study = optuna.create_study(study_name="new/search", storage=new.optuna)
        for _ in range(4):
            study.enqueue_trial({})
        study.ask()
        evidence = read(new, "new")
        assert evidence.outcomes.set_index("outcome")["trials"].to_dict() == {"running": 1, "waiting": 3}
        assert "0 of 4 search trials have ended." in text_of(render(evidence, Path("nowhere"), None))

    def test_all_failed_experiment_gives_the_reasons(self, changed: Path) -> None:
        """When every trial failed there is no figure of losses, but every reason."""
        query(
            changed,
            "UPDATE trials SET state = 'FAIL'",
            "UPDATE trial_run SET outcome = 'failed', state = 'FAIL', reason = 'OutOfMemoryError: 3 GB', value = NULL,"
            " valid_loss = NULL, best_valid_loss = NULL, hit = 0, score = NULL, test_loss = NULL",
            "DELETE FROM curve",
            "DELETE FROM trial_values",
        )
        text = text_of(report_of(changed))
        assert "OutOfMemoryError: 3 GB" in text
        assert "No search trial has a validation loss, so there is nothing to draw." in text
        assert "No confirmation run has recorded a curve yet." in text

    def test_unfinished_comparison_shows_what_there_is(self, changed: Path) -> None:
        """With confirmation runs missing, the page says how many and draws the others."""
        query(
            changed,
            "DELETE FROM trials WHERE trial_id IN (SELECT trial_id FROM trial_run WHERE arm = 'cosine')",
        )
        text = text_of(report_of(changed))
        assert re.search(r"\d+ of \d+ confirmation runs have ended", text)
        assert "Unfinished: cosine lack confirmation runs." in text
        assert "he" in text

    def test_untimed_comparison_has_no_seconds(self, changed: Path) -> None:
        """Without timings there is no forest plot in seconds, and the page says why."""
        query(changed, "DELETE FROM throughput")
        html = report_of(changed)
        assert 'id="graph-forest"' in html
        assert 'id="graph-forest-seconds"' not in html
        assert 'id="curves-examples"' in html
        assert "<fieldset" not in html
        assert "No arm has been timed against the baseline yet." in text_of(html)

    def test_search_only_report_leads_with_the_best_trial(self, changed: Path) -> None:
        """A search without a comparison has its own first screen and no empty parts of a comparison."""
        with Store.open(f"sqlite:///{changed}") as store:
            spec = store.load_experiment(NAME)
            assert spec is not None
            spec["experiment"]["arms"] = []
            store.save_experiment(NAME, spec)
        html = report_of(changed)
        assert re.search(
            r"The best of 40 search trials is trial \d+: a validation loss of 2\d\.\d\d nats", text_of(html)
        )
        assert 'id="graph-history"' in html
        assert 'id="curves"' not in html

    def test_foreign_studies_are_left_out(self, changed: Path) -> None:
        """Neither a study of another tool nor one that merely borrows the experiment's name is shown."""
        before = report_of(changed)
        with Store.open(f"sqlite:///{changed}") as store:
            for name in ("somebody-else", f"{NAME}/intruder", f"{NAME}/he/late"):
                study = optuna.create_study(study_name=name, storage=store.optuna)
                study.optimize(lambda trial: trial.suggest_float("foreign_parameter", 0, 1), n_trials=2)
        assert report_of(changed) == before

    def test_missing_data_or_model_is_named(self, tiny: Any, tmp_path: Path) -> None:
        """Without the data the best model still shows samples; without the model's file there is a sentence."""
        with Store.open(tiny.url, read_only=True) as store:
            evidence = read(store, tiny.name)
            whole = render(evidence, Local(tiny.artifacts), None)
            Path(evidence.experiment.data).rename(tmp_path / "moved.npy")
            try:
                without = render(evidence, Local(tiny.artifacts), None)
            finally:
                (tmp_path / "moved.npy").rename(evidence.experiment.data)
            nothing = render(evidence, Local(tmp_path / "elsewhere"), None)
        assert 'id="reconstructions"' in whole
        assert 'id="latent"' in whole
        assert 'id="reconstructions"' not in without
        assert 'id="samples"' in without
        assert "The data is not here" in text_of(without)
        assert "The best model's file is not in" in text_of(nothing)

    def test_damaged_model_is_named(self, tiny: Any) -> None:
        """A file that is no model costs its pictures, not the report."""
        for path in (tiny.artifacts / tiny.name).rglob("*.safetensors"):
            path.write_bytes(b"not a model")
        with Store.open(tiny.url, read_only=True) as store:
            html = render(read(store, tiny.name), Local(tiny.artifacts), None)
        assert re.search(r" trial-\d+\.safetensors is no model written by this project", text_of(html))
