"""What is published: notes, plots and images as the dashboard's own API gives them back."""

from __future__ import annotations

import io
import json
import re
import shutil
import threading
from typing import TYPE_CHECKING, Any

import optuna
import plotly.graph_objects as go
import pytest
from PIL import Image as Pillow

from study.analysis.evidence import read
from study.analysis.sentences import sentences
from study.analysis.words import examples_of
from study.dashboard.board import Image, plot_pieces, write
from study.dashboard.publisher import publish
from study.report.markdown import markdown_text
from study.store.locations import Local, locate
from study.store.store import Store
from vae.errors import UserError

if TYPE_CHECKING:
    from tiny_study import Open, Tiny

pytest_plugins = ["tiny_study"]


def test_what_is_written_is_what_the_dashboard_reads(store: Store, open_dashboard: Open) -> None:
    """Notes of any length, plots and images come back through the dashboard's API, also after they shrank."""
    study = optuna.create_study(study_name="digits/search", storage=store.optuna)
    study.add_trial(optuna.trial.create_trial(value=1.0))
    client = open_dashboard(store.url)
    for size in (3, 500, 4):
        figure = go.Figure(go.Scatter(y=list(range(size))))
        picture = Image("samples", study._study_id, study.trials[0]._trial_id, "ab-1", "samples.png")
        write(store, study._study_id, "long note " * size, plot_pieces({"vae-x": figure}), [picture])
        found = client.study("digits/search")
        assert found["note"]["body"].startswith("long note " * size + "\n")
        assert found["note"]["body"].endswith("renewed.*")
        (plot,) = found["plotly_graph_objects"]
        assert plot["id"] == "vae-x"
        assert json.loads(plot["graph_object"])["data"][0]["y"] == list(range(size))
        (artifact,) = found["trials"][0]["artifacts"]
        assert artifact == {
            "artifact_id": "ab-1",
            "filename": "samples.png",
            "mimetype": "image/png",
            "encoding": None,
        }


def test_nothing_is_written_where_nothing_changed(store: Store) -> None:
    """Publishing again touches no row, so the note's version, which an open editor holds, stays."""
    study = optuna.create_study(study_name="digits/search", storage=store.optuna)
    pieces = plot_pieces({"vae-x": go.Figure(go.Scatter(y=[1, 2]))})
    write(store, study._study_id, "note", pieces)
    before = attributes(store)
    write(store, study._study_id, "note", pieces)
    assert attributes(store) == before
    write(store, study._study_id, "another", pieces)
    assert attributes(store) != before


def test_a_study_deleted_meanwhile_is_no_error(store: Store) -> None:
    """Somebody deletes a study while it is published: nothing of it comes back."""
    study = optuna.create_study(study_name="digits/search", storage=store.optuna)
    optuna.delete_study(study_name="digits/search", storage=store.optuna)
    write(store, study._study_id, "note", {})
    assert attributes(store) == []


def test_a_page_never_reads_half_a_plot(tiny: Tiny, tiny_store: Store, open_dashboard: Open) -> None:
    """While a plot of many pieces is replaced again and again, every answer holds one whole version of it."""
    study = optuna.load_study(study_name=f"{tiny.name}/muon", storage=tiny_store.optuna)
    versions = [plot_pieces({"vae-x": go.Figure(go.Scatter(y=[size] * size))}) for size in (400, 4000)]
    write(tiny_store, study._study_id, "note", versions[0])
    client = open_dashboard(tiny.url)
    path = f"/api/studies/{study._study_id}"
    done = threading.Event()

    def keep_writing() -> None:
        for i in range(30):
            write(tiny_store, study._study_id, f"note {i}", versions[i % 2])
        done.set()

    writer = threading.Thread(target=keep_writing)
    writer.start()
    seen: set[int] = set()
    while not done.is_set() or not seen:
        (plot,) = client.get(path)["plotly_graph_objects"]
        y = json.loads(plot["graph_object"])["data"][0]["y"]
        assert set(y) == {len(y)}
        seen.add(len(y))
    writer.join()


def test_the_notes_hold_the_answer(tiny: Tiny, tiny_store: Store) -> None:
    """Baseline's and search's notes hold the sentences and a verdict table with the figures of the estimate."""
    comparison = read(tiny_store, tiny.name).comparison
    assert comparison is not None
    for part in ("baseline", "search"):
        note = tiny.note(tiny_store, part)
        for sentence in sentences(comparison):
            assert markdown_text(sentence) in note
        rows = {row.split("|")[1].strip(): row for row in note.splitlines() if row.startswith("| ")}
        for arm in comparison.arms:
            shown = rows[arm.arm]
            assert f"{arm.hits}/3" in shown
            if arm.examples is not None:
                assert markdown_text(examples_of(arm)) in shown
                assert markdown_text(arm.examples.words) in shown
    assert f"note of {tiny.name}/baseline" in tiny.note(tiny_store, "muon")


def test_every_phase_of_an_experiment_can_be_published(finished_study: Tiny) -> None:
    """From the first second on there is a note; it says what is missing until the target is known."""
    first, last = finished_study.stages[0], finished_study.stages[-1]
    assert "isn't calibrated yet" in first
    assert "| muon" not in first
    assert "Time to a validation loss of" in last
    assert "| muon" in last


def test_publishing_again_changes_nothing(tiny: Tiny, tiny_store: Store) -> None:
    """The same experiment published twice is the same rows and files: no second image, no new version."""
    rows, files = attributes(tiny_store), tiny.images()
    publish(tiny_store, tiny.name, Local(tiny.artifacts), None)
    assert attributes(tiny_store) == rows
    assert tiny.images() == files


def test_the_plots_are_drawn_data(finished_study: Tiny, open_dashboard: Open) -> None:
    """Forest, survival, learning and response curves have fixed ids; the forest's numbers are the table's."""
    client = open_dashboard(finished_study.url)
    for study_name in (f"{finished_study.name}/baseline", f"{finished_study.name}/search"):
        plots = {
            plot["id"]: plot["graph_object"] for plot in client.study(study_name)["plotly_graph_objects"]
        }
        assert set(plots) == {"vae-forest", "vae-survival", "vae-curves", "vae-response"}
        for text in plots.values():
            drawn = json.loads(text)
            assert sum(len(trace.get("y") or ()) for trace in drawn["data"]) > 3
            assert drawn["layout"]["height"] == 450
        for arm in ("baseline", *finished_study.arms):
            titles = [note["text"] for note in json.loads(plots["vae-curves"])["layout"]["annotations"]]
            assert arm in titles


def test_each_panel_has_axes_of_its_own(finished_study: Tiny, open_dashboard: Open) -> None:
    """In a grid of small panels every trace and shape refers to axes that exist, and no two panels overlap."""
    plots = open_dashboard(finished_study.url).study(f"{finished_study.name}/baseline")[
        "plotly_graph_objects"
    ]
    drawn = json.loads(next(plot["graph_object"] for plot in plots if plot["id"] == "vae-curves"))
    layout = drawn["layout"]
    used = {(trace["xaxis"], trace["yaxis"]) for trace in drawn["data"]}
    shapes = {(part["xref"].split()[0], part["yref"].split()[0]) for part in layout["shapes"]}
    assert shapes == used
    boxes = [
        (*layout[x.replace("x", "xaxis")]["domain"], *layout[y.replace("y", "yaxis")]["domain"])
        for x, y in used
    ]
    assert len(boxes) == sum(note["xref"] == "paper" for note in layout["annotations"])
    assert {note["xref"].split()[0] for note in layout["annotations"]} - {"paper"} <= {x for x, _ in used}
    for i, (left, right, low, high) in enumerate(boxes):
        for other_left, other_right, other_low, other_high in boxes[:i]:
            assert right <= other_left or other_right <= left or high <= other_low or other_high <= low


def test_the_best_trial_has_its_images(finished_study: Tiny, open_dashboard: Open) -> None:
    """Reconstructions and samples are PNG files of the search's best trial, and its study's note shows them."""
    client = open_dashboard(finished_study.url, finished_study.artifacts)
    search = client.study(f"{finished_study.name}/search")
    best = search["best_trials"][0]["number"]
    files = {trial["number"]: trial["artifacts"] for trial in search["trials"]}
    assert [file["filename"] for file in files[best]] == ["reconstructions.png", "samples.png"]
    assert sum(len(found) for found in files.values()) == 2
    addresses = re.findall(r"!\[[^\]]*\]\((/artifacts/[^)]*)\)", search["note"]["body"])
    assert len(addresses) == 2
    for address in addresses:
        status, headers, content = client.request(address)
        assert (status, headers["Content-Type"]) == (200, "image/png")
        with Pillow.open(io.BytesIO(content)) as picture:
            assert picture.format == "PNG"
            assert picture.width > 500
            assert len(set(picture.convert("L").get_flattened_data())) > 10


def test_pictures_that_cannot_be_drawn_are_named(tiny: Tiny, tiny_store: Store) -> None:
    """Without the models of the run, on another machine say, all else is published and the note says why."""
    assert "![" in tiny.note(tiny_store, "search")
    publish(tiny_store, tiny.name, Local(tiny.folder / "elsewhere"), None)
    note = tiny.note(tiny_store, "search")
    assert "| muon" in note
    assert "![" not in note
    assert re.search(r"Not all pictures can be shown: the model of trial \d+ is not in .*elsewhere", note)


def test_an_artifact_store_out_of_reach_is_named(tiny: Tiny, tiny_store: Store, open_dashboard: Open) -> None:
    """A server that is away takes neither the note with it nor the page: both say what is missing, in a line."""
    away = "ftp://127.0.0.1:1/artifacts"
    client = open_dashboard(tiny.url, away)
    address = re.findall(r"!\[[^\]]*\]\((/artifacts/[^)]*)\)", tiny.note(tiny_store, "search"))[0]
    status, _, content = client.request(address)
    assert status == 503
    assert b"Connection refused" in content
    publish(tiny_store, tiny.name, locate(away), None)
    note = tiny.note(tiny_store, "search")
    assert "| muon" in note
    assert re.search(r"Not all pictures can be shown: .*127\.0\.0\.1:1.* refused", note)


def test_a_model_of_another_database_is_not_shown(tiny: Tiny, tiny_store: Store) -> None:
    """Two databases may share an artifacts folder; a model with another recipe isn't this trial's."""
    shutil.rmtree(tiny.artifacts / "dashboard")
    with tiny_store.write() as connection:
        connection.exec_driver_sql(
            "UPDATE trial_run SET recipe = replace(recipe, '\"seed\":', '\"seed\":1') WHERE phase = 'search'"
        )
    publish(tiny_store, tiny.name, Local(tiny.artifacts), None)
    note = tiny.note(tiny_store, "search")
    assert "![" not in note
    assert "of another experiment" in note


def test_samples_are_shown_without_the_data(finished_study: Tiny, tiny: Tiny, tiny_store: Store) -> None:
    """Data that isn't here costs the reconstructions only."""
    shutil.rmtree(tiny.artifacts / "dashboard")
    with tiny_store.write() as connection:
        moved = [str(finished_study.folder), str(tiny.folder)]
        connection.exec_driver_sql("UPDATE experiment SET spec = replace(spec, ?, ?)", tuple(moved))
    publish(tiny_store, tiny.name, Local(tiny.artifacts), None)
    note = tiny.note(tiny_store, "search")
    assert note.count("![") == 1
    assert "the data is not here" in note


def test_an_unknown_experiment_is_a_users_error(tiny: Tiny, tiny_store: Store) -> None:
    """A wrong name is one line that says so."""
    with pytest.raises(UserError, match="No experiment 'nope'"):
        publish(tiny_store, "nope", Local(tiny.artifacts), None)


def test_what_one_filters_by_is_readable(finished_study: Tiny, open_dashboard: Open) -> None:
    """Arm, phase, seed, block, outcome, seconds and examples to target are attributes; numbers can be sorted."""
    client = open_dashboard(finished_study.url)
    found = client.study(f"{finished_study.name}/baseline")
    sortable = {column["key"]: column["sortable"] for column in found["union_user_attrs"]}
    expected = {"arm": False, "phase": False, "outcome": False, "seed": True, "block": True, "seconds": True}
    assert expected.items() <= sortable.items()
    assert sortable["examples_to_target"]
    confirmed = [
        trial for trial in found["trials"] if {"key": "phase", "value": "confirm"} in trial["user_attrs"]
    ]
    assert len(confirmed) == 3


def attributes(store: Store) -> list[Any]:
    """Every row that the dashboard reads."""
    with store.read() as connection:
        query = "SELECT study_system_attribute_id, study_id, key, value_json FROM study_system_attributes ORDER BY 1"
        return [tuple(row) for row in connection.exec_driver_sql(query)]
