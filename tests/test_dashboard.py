"""The dashboard through its own API: what is published, what is served, and what is refused."""

from __future__ import annotations

import hashlib
import io
import json
import re
import shutil
import socket
import threading
import time
import wsgiref.util
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
import plotly.graph_objects as go
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from PIL import Image as Pillow

from study import dashboard_publish
from study.dashboard import Dashboard, _Server, serve
from study.dashboard_board import Image, plot_pieces, with_own_words, write
from study.dashboard_notes import escape, table
from study.dashboard_publish import Publisher, publish
from study.narrative import ratio
from study.reading import comparison_of
from study.storage import Store
from vae.errors import FailureError, UserError

if TYPE_CHECKING:
    from tiny_study import Tiny

pytest_plugins = ["tiny_study"]

_MARKDOWN = MarkdownIt("commonmark").enable(["table", "strikethrough"])
_MARKUP = [
    "**b**",
    "_i_",
    "`c`",
    "``",
    "[l](u)",
    "![i](u)",
    "[r]: u",
    "<img src=x onerror=y>",
    "</td>",
    "<!--",
]
_MARKUP += [
    "<http://u>",
    "&lt;",
    "&#60;",
    "~~s~~",
    "| --- |",
    "\\",
    "# h",
    "- l",
    "1. l",
    "2) l",
    "> q",
    "+",
    "=",
    "---",
]
_MARKUP += ["\n\n", "    ", "```", "~~~", "$x$", "\t", " ", "w"]
_ANY = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=4)
_TEXT = st.lists(st.sampled_from(_MARKUP) | _ANY, max_size=8).map("".join)


class Client:
    """A browser's requests to a WSGI application, without the browser."""

    def __init__(self, application: Dashboard) -> None:
        self.application = application

    def request(
        self, path: str, method: str = "GET", body: Any = None, host: str = "127.0.0.1:8080", **headers: str
    ) -> tuple[int, dict[str, str], bytes]:
        path, _, query = path.partition("?")
        sent = b"" if body is None else json.dumps(body).encode()
        environ: dict[str, Any] = {"PATH_INFO": path, "QUERY_STRING": query, "REQUEST_METHOD": method}
        environ |= {"HTTP_HOST": host, "wsgi.input": io.BytesIO(sent), "CONTENT_LENGTH": str(len(sent))}
        environ |= {"CONTENT_TYPE": "application/json"}
        environ |= {f"HTTP_{key.upper()}": value for key, value in headers.items()}
        wsgiref.util.setup_testing_defaults(environ)
        started: list[tuple[str, dict[str, str]]] = []

        def start_response(status: str, found: list[tuple[str, str]], exc_info: Any = None, /) -> Any:  # noqa: ARG001
            started.append((status, dict(found)))

        answer = self.application(environ, start_response)
        content = b"".join(answer)
        if hasattr(answer, "close"):
            answer.close()
        status, found = started[-1]
        return int(status.split()[0]), found, content

    def get(self, path: str) -> Any:
        status, _, content = self.request(path)
        assert status == 200, (path, content)
        return json.loads(content)

    def study(self, study_name: str) -> Any:
        return self.get(f"/api/studies/{self.study_id(study_name)}")

    def study_id(self, study_name: str) -> int:
        found = self.get("/api/studies")["study_summaries"]
        return next(int(study["study_id"]) for study in found if study["study_name"] == study_name)


Open = Callable[..., Client]


@pytest.fixture
def open_dashboard(tmp_path: Path) -> Iterator[Open]:
    """Opens the dashboard of a database as `serve` does."""
    opened: list[Any] = []

    def open_dashboard(url: str, artifacts: Path = tmp_path / "artifacts", local: bool = True) -> Client:
        store = Store.open(url, read_only=True)
        dashboard = Dashboard(store, artifacts, local=local, say=print)
        opened.extend([dashboard, store])
        return Client(dashboard)

    yield open_dashboard
    for part in opened:
        part.__exit__()


# What notes say.


@settings(max_examples=200)
@given(text=_TEXT)
def test_escaped_text_is_shown_as_it_is(text: str) -> None:
    """Whatever the database holds is shown letter by letter: no markup, HTML, image or formula comes of it."""
    shown = " ".join(text.split())
    for before in ("", "- ", "**Answer**: "):
        inline = [token for token in _MARKDOWN.parse(f"{before}{escape(text)}") if token.type == "inline"]
        parts = [part for token in inline for part in token.children or ()]
        expected = ("Answer: " * before.startswith("**") + shown).rstrip()
        assert "".join(part.content for part in parts) == expected
        assert {part.type for part in parts} <= {"text", "text_special", "strong_open", "strong_close"}


@settings(max_examples=200)
@given(cells=st.lists(_TEXT.filter(lambda text: text.strip() != ""), min_size=3, max_size=3))
def test_no_cell_breaks_out_of_its_table(cells: list[str]) -> None:
    """A row has as many cells as its header, each with its own text."""
    tokens = _MARKDOWN.parse(table(["a", "b", "c"], [[escape(cell) for cell in cells]]))
    shown = [token.content for token in tokens if token.type == "inline"]
    texts = [re.sub(r"\\(.)", r"\1", cell).strip() for cell in shown]
    assert texts == ["a", "b", "c", *(" ".join(cell.split()) for cell in cells)]


def test_own_words_stay_in_a_note() -> None:
    """What a reader wrote, before or after ours, survives any number of renewals and isn't doubled."""
    first = with_own_words("ours 1", "mine, written before")
    assert with_own_words("ours 1", first) == first
    renewed = with_own_words("ours 2", first + "\nmine, written after")
    assert "ours 1" not in renewed
    assert renewed.startswith("ours 2\n")
    assert renewed.endswith("mine, written before\nmine, written after")


# The board: both databases.


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


# Publishing an experiment.


def test_the_notes_hold_the_answer(tiny: Tiny, tiny_store: Store) -> None:
    """Baseline's and search's notes hold the sentences and a verdict table with the figures of the estimate."""
    comparison = comparison_of(tiny_store, tiny.name)
    assert comparison is not None
    for part in ("baseline", "search"):
        note = tiny.note(tiny_store, part)
        for sentence in comparison.sentences:
            assert escape(sentence) in note
        rows = {row.split("|")[1].strip(): row for row in note.splitlines() if row.startswith("| ")}
        for row in comparison.arms.to_dict("records"):
            shown = rows[row["arm"]]
            assert f"{row['hits']}/3" in shown
            if row["kind"] != "baseline":
                assert escape(ratio(row["speed_up"], row["low"], row["high"])) in shown
                assert escape(row["verdict"]) in shown
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
    rows, files = attributes(tiny_store), contents(tiny.artifacts / "dashboard")
    publish(tiny_store, tiny.name, tiny.artifacts, None)
    assert attributes(tiny_store) == rows
    assert contents(tiny.artifacts / "dashboard") == files


def test_the_plots_are_drawn_data(finished_study: Tiny, open_dashboard: Open) -> None:
    """Forest, survival and learning curves are custom plots with fixed ids; the forest's numbers are the table's."""
    client = open_dashboard(finished_study.url)
    for study_name in (f"{finished_study.name}/baseline", f"{finished_study.name}/search"):
        plots = {
            plot["id"]: plot["graph_object"] for plot in client.study(study_name)["plotly_graph_objects"]
        }
        assert set(plots) == {"vae-forest", "vae-survival", "vae-curves"}
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
    assert len(boxes) == len(note_arms(layout))
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
    publish(tiny_store, tiny.name, tiny.folder / "elsewhere", None)
    note = tiny.note(tiny_store, "search")
    assert "| muon" in note
    assert "![" not in note
    assert re.search(r"Not all pictures can be shown: the model of trial \d+ is not in .*elsewhere", note)


def test_a_model_of_another_database_is_not_shown(tiny: Tiny, tiny_store: Store) -> None:
    """Two databases may share an artifacts folder; a model with another recipe isn't this trial's."""
    shutil.rmtree(tiny.artifacts / "dashboard")
    with tiny_store.write() as connection:
        connection.exec_driver_sql(
            "UPDATE trial_run SET recipe = replace(recipe, '\"seed\":', '\"seed\":1') WHERE phase = 'search'"
        )
    publish(tiny_store, tiny.name, tiny.artifacts, None)
    note = tiny.note(tiny_store, "search")
    assert "![" not in note
    assert "of another experiment" in note


def test_samples_are_shown_without_the_data(finished_study: Tiny, tiny: Tiny, tiny_store: Store) -> None:
    """Data that isn't here costs the reconstructions only."""
    shutil.rmtree(tiny.artifacts / "dashboard")
    with tiny_store.write() as connection:
        moved = [str(finished_study.folder), str(tiny.folder)]
        connection.exec_driver_sql("UPDATE experiment SET spec = replace(spec, ?, ?)", tuple(moved))
    publish(tiny_store, tiny.name, tiny.artifacts, None)
    note = tiny.note(tiny_store, "search")
    assert note.count("![") == 1
    assert "the data is not here" in note


def test_an_unknown_experiment_is_a_users_error(tiny: Tiny, tiny_store: Store) -> None:
    """A wrong name is one line that says so."""
    with pytest.raises(UserError, match="No experiment 'nope'"):
        publish(tiny_store, "nope", tiny.artifacts, None)


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


# Serving.


def test_reading_changes_nothing_and_foreign_studies_are_shown(tiny: Tiny, open_dashboard: Open) -> None:
    """Studies of any other program in the same file are served beside ours, and looking leaves the file as it is."""
    with Store.open(tiny.url) as store:
        many = optuna.create_study(
            study_name=tiny.hostile, storage=store.optuna, directions=["minimize", "maximize"]
        )
        many.set_user_attr(tiny.hostile, [1, {"deep": None}])
        many.enqueue_trial({"x": 1.0})
        many.add_trial(
            optuna.trial.create_trial(values=[1.0, float("inf")], user_attrs={"nan": float("nan")})
        )
        failed = optuna.create_study(study_name=f"{tiny.name}/not-ours/2/x", storage=store.optuna)
        failed.add_trial(optuna.trial.create_trial(state=optuna.trial.TrialState.FAIL))
        optuna.create_study(study_name="", storage=store.optuna)
        publish(store, tiny.name, tiny.artifacts, None)
    path = tiny.folder / "optuna.db"
    before = hashlib.sha256(path.read_bytes()).hexdigest()
    client = open_dashboard(tiny.url)
    studies = client.get("/api/studies")["study_summaries"]
    assert len(studies) == 9
    for study in studies:
        detail = client.get(f"/api/studies/{study['study_id']}")
        assert detail["name"] == study["study_name"]
        assert client.request(f"/csv/{study['study_id']}")[0] == 200
    for page in ("/", "/dashboard", "/static/bundle.js", "/api/meta"):
        assert client.request(page)[0] in (200, 302)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == before


def test_own_words_written_in_the_dashboard_stay(tiny: Tiny, tiny_store: Store, open_dashboard: Open) -> None:
    """A note edited in the dashboard keeps its words when it is renewed."""
    client = open_dashboard(tiny.url)
    study_id = client.study_id(f"{tiny.name}/baseline")
    note = client.study(f"{tiny.name}/baseline")["note"]
    edited = {"body": note["body"] + "\n\nChecked by hand.", "version": note["version"] + 1}
    status, _, content = client.request(f"/api/studies/{study_id}/note", "PUT", edited)
    assert status == 204, content
    tiny_store.add_throughput(
        tiny.name,
        "muon",
        9,
        examples_per_second=900.0,
        baseline_examples_per_second=1000.0,
        cold_start_seconds=None,
    )
    publish(tiny_store, tiny.name, tiny.artifacts, None)
    after = client.study(f"{tiny.name}/baseline")["note"]["body"]
    assert after.endswith("Checked by hand.")
    assert after != edited["body"]


def test_a_study_deleted_in_the_dashboard_takes_our_rows_along(
    tiny: Tiny, tiny_store: Store, open_dashboard: Open
) -> None:
    """The delete button works on loopback, and removes the study's runs, curves and image files."""
    client = open_dashboard(tiny.url)
    study_id = client.study_id(f"{tiny.name}/search")
    assert contents(tiny.artifacts / "dashboard")
    status, _, content = client.request(
        f"/api/studies/{study_id}", "DELETE", {"remove_associated_artifacts": True}
    )
    assert status == 204, content
    assert f"{tiny.name}/search" not in tiny_store.studies(tiny.name)
    assert "search" not in set(tiny_store.trials(tiny.name)["phase"])
    assert "search" not in set(tiny_store.curves(tiny.name)["phase"])
    assert contents(tiny.artifacts / "dashboard") == {}


def test_where_others_reach_it_nothing_can_be_changed(tiny: Tiny, open_dashboard: Open) -> None:
    """Off loopback there is no login, so every button answers 403 and the database stays."""
    client = open_dashboard(tiny.url, local=False)
    before = contents(tiny.artifacts / "dashboard")
    study_id = client.study_id(f"{tiny.name}/search")
    for method, path, body in (
        ("DELETE", f"/api/studies/{study_id}", {}),
        ("POST", "/api/studies", {"study_name": "new", "directions": ["minimize"]}),
        ("PUT", f"/api/studies/{study_id}/note", {"body": "x", "version": 1}),
        ("POST", f"/api/artifacts/{study_id}", {"file": "data:text/html;base64,PGI+", "filename": "x.html"}),
    ):
        status, _, content = client.request(path, method, body, host="example.org")
        assert status == 403
        assert "only shows" in json.loads(content)["reason"]
    assert len(client.get("/api/studies")["study_summaries"]) == 6
    assert contents(tiny.artifacts / "dashboard") == before


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8080", "127.0.0.1.evil.example", "192.168.0.9:8080"]
)
def test_a_name_that_is_pointed_at_this_machine_is_refused(
    tiny: Tiny, open_dashboard: Open, host: str
) -> None:
    """DNS rebinding: another site's page can't read the studies under its own name."""
    client = open_dashboard(tiny.url)
    status, _, content = client.request("/api/studies", host=host)
    assert status == 403
    assert host in json.loads(content)["reason"]
    for ours in ("127.0.0.1:8080", "localhost:1", "[::1]:8080", "LOCALHOST"):
        assert client.request("/api/studies", host=ours)[0] == 200


def test_another_sites_page_can_change_nothing(tiny: Tiny, open_dashboard: Open) -> None:
    """A request of another origin is refused, one of the dashboard's own pages is served."""
    client = open_dashboard(tiny.url)
    new = {"study_name": "new", "directions": ["minimize"]}
    for origin in ("https://evil.example", "http://127.0.0.1:9999", "null"):
        assert client.request("/api/studies", "POST", new, origin=origin)[0] == 403
    assert client.request("/api/studies", "POST", new, origin="http://127.0.0.1:8080")[0] == 201


def test_an_html_artifact_cannot_run(tiny: Tiny, tiny_store: Store, open_dashboard: Open) -> None:
    """An HTML file that somebody uploaded is sent under headers that let no script run, and to no other site."""
    study = optuna.load_study(study_name=f"{tiny.name}/search", storage=tiny_store.optuna)
    client = open_dashboard(tiny.url)
    page = {"file": "data:text/html;base64,PHNjcmlwdD4x", "filename": "page.html"}
    status, _, content = client.request(f"/api/artifacts/{study._study_id}", "POST", page)
    assert status == 201, content
    artifact = json.loads(content)["artifact_id"]
    status, headers, content = client.request(f"/artifacts/{study._study_id}/{artifact}")
    assert (status, content) == (200, b"<script>1")
    assert headers["Content-Security-Policy"] == "sandbox; default-src 'none'"
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert "Access-Control-Allow-Origin" not in headers


def test_a_missing_image_is_not_found(finished_study: Tiny, open_dashboard: Open, tmp_path: Path) -> None:
    """With the wrong --artifacts an image answers 404 and says where it was looked for."""
    client = open_dashboard(finished_study.url, tmp_path / "wrong")
    (address, _) = re.findall(
        r"\((/artifacts/[^)]*)\)", client.study(f"{finished_study.name}/search")["note"]["body"]
    )
    status, _, content = client.request(address)
    assert status == 404
    assert b"--artifacts" in content


def test_a_read_only_place_is_served_and_its_buttons_say_why_not(
    tiny: Tiny, open_dashboard: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A database that can't be written is shown all the same; a button answers 503 with the cause."""
    client = open_dashboard(tiny.url)

    def refuse(*arguments: Any, **options: Any) -> Store:  # noqa: ARG001
        raise FailureError("optuna.db is in a read-only place.")

    monkeypatch.setattr(Store, "open", refuse)
    assert client.request("/api/studies")[0] == 200
    status, _, content = client.request(
        "/api/studies", "POST", {"study_name": "n", "directions": ["minimize"]}
    )
    assert status == 503
    assert "read-only place" in json.loads(content)["reason"]


@pytest.fixture
def ctrl_c(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C as soon as the server listens."""

    def interrupted(server: _Server) -> None:  # noqa: ARG001
        raise KeyboardInterrupt

    monkeypatch.setattr(_Server, "serve_forever", interrupted)


@pytest.mark.usefixtures("ctrl_c")
def test_serve_says_where_and_ends_quietly(tiny: Tiny) -> None:
    """One line with the address on loopback; Ctrl-C ends it without an error."""
    said: list[str] = []
    serve(tiny.url, tiny.artifacts, "127.0.0.1", 0, said.append)
    (line,) = said
    assert re.search(r"http://127\.0\.0\.1:[1-9]\d*/ ", line)


@pytest.mark.usefixtures("ctrl_c")
def test_serve_warns_where_others_reach_it(tiny: Tiny) -> None:
    """Off loopback the first line says that there is no login and what that means."""
    said: list[str] = []
    serve(tiny.url, tiny.artifacts, "0.0.0.0", 0, said.append)
    assert said[0].startswith("Warning: 0.0.0.0 can be reached from other machines")
    assert "no login" in said[0]


def test_a_port_in_use_is_named_with_the_way_out(tiny: Tiny) -> None:
    """Two dashboards on one port: the second says which port, and how to choose another."""
    server = _Server(*_loopback())
    with server:
        port = server.server_port
        with pytest.raises(
            UserError, match=rf"Port {port} of 127\.0\.0\.1 is in use.*--port {port + 1}"
        ) as caught:
            serve(tiny.url, tiny.artifacts, "127.0.0.1", port, print)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("host", "words"), [("no.such.invalid", "is no address"), ("192.0.2.7", "is no address")]
)
def test_a_host_of_no_use_is_one_line(tiny: Tiny, host: str, words: str) -> None:
    """A host that isn't this machine is refused with the way out."""
    with pytest.raises(UserError, match=f"--host {re.escape(host)} {words}.*--host 127.0.0.1"):
        serve(tiny.url, tiny.artifacts, host, 0, print)


def test_a_missing_database_is_one_line(tmp_path: Path) -> None:
    """No database, no server, and none is made."""
    with pytest.raises(UserError, match=r"No database .*optuna\.db"):
        serve(f"sqlite:///{tmp_path / 'optuna.db'}", tmp_path, "127.0.0.1", 0, print)
    assert list(tmp_path.iterdir()) == []


# Keeping it current.


class Published:
    """Stands in for `publish`: counts, blocks until let go, fails when told to."""

    def __init__(self) -> None:
        self.times = 0
        self.threads: set[int] = set()
        self.go = threading.Event()
        self.go.set()
        self.error: Exception | None = None

    def __call__(self, *arguments: Any) -> None:  # noqa: ARG002
        self.times += 1
        self.threads.add(threading.get_ident())
        assert self.go.wait(30)
        if self.error is not None:
            raise self.error


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> Published:
    """`publish` replaced, and no waiting between two publications."""
    stand_in = Published()
    monkeypatch.setattr(dashboard_publish, "publish", stand_in)
    monkeypatch.setattr(dashboard_publish, "INTERVAL", 0.0)
    monkeypatch.setattr(dashboard_publish, "SHARE", float("inf"))
    return stand_in


def publisher_of(tiny: Tiny, store: Store, said: list[str]) -> Publisher:
    return Publisher(store, tiny.name, tiny.artifacts, None, said.append)


def begin_a_trial(store: Store) -> None:
    with store.write() as connection:
        connection.exec_driver_sql("UPDATE trial_run SET attempt = attempt + 1 WHERE trial_id = 1")


def test_the_publisher_never_makes_the_launcher_wait(
    tiny: Tiny, tiny_store: Store, published: Published
) -> None:
    """Publishing goes on in another thread, one at a time, while the launcher comes back at once."""
    published.go.clear()
    publisher = publisher_of(tiny, tiny_store, [])
    for _ in range(5):
        publisher.maybe_publish()  # would not come back if it published here
    published.go.set()
    publisher.wait()
    assert published.times == 1
    assert threading.get_ident() not in published.threads


def test_the_publisher_rests_while_nothing_happens(
    tiny: Tiny, tiny_store: Store, published: Published
) -> None:
    """Only a trial that has begun or ended is news; at the end everything is published once more."""
    with publisher_of(tiny, tiny_store, []) as publisher:
        seen = []
        for news in (False, False, True, False):
            if news:
                begin_a_trial(tiny_store)
            publisher.maybe_publish()
            publisher.wait()
            seen.append(published.times)
        assert seen == [1, 1, 2, 2]
    assert published.times == 3


def test_the_publisher_keeps_its_interval(
    tiny: Tiny, tiny_store: Store, published: Published, monkeypatch: pytest.MonkeyPatch
) -> None:
    """News is published at most every INTERVAL seconds, the first time INTERVAL after the start."""
    now = [1000.0]
    monkeypatch.setattr(dashboard_publish, "INTERVAL", 30.0)
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    publisher = publisher_of(tiny, tiny_store, [])
    seen = []
    for second in range(0, 100, 5):
        now[0] = 1000.0 + second
        begin_a_trial(tiny_store)
        publisher.maybe_publish()
        publisher.wait()
        seen.append(published.times)
    assert seen.index(1) == 6
    assert seen.index(2) == 12
    assert seen[-1] == 3


def test_a_slow_publication_is_made_rarer(
    tiny: Tiny, tiny_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever a publication costs, it takes at most a twentieth of a core."""
    now = [0.0]
    begun = []

    def slow(*arguments: Any) -> None:  # noqa: ARG001
        begun.append(now[0])
        now[0] += 10.0

    monkeypatch.setattr(dashboard_publish, "publish", slow)
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(time, "thread_time", lambda: now[0])
    publisher = publisher_of(tiny, tiny_store, [])
    while now[0] < 1000.0:
        now[0] += 1.0
        begin_a_trial(tiny_store)
        publisher.maybe_publish()
        publisher.wait()
    assert 4 <= len(begun) <= 6


def test_an_error_is_told_once_and_ends_nothing(tiny: Tiny, tiny_store: Store, published: Published) -> None:
    """A publication that fails is one line, told once; the next one is tried, and the launcher never sees it."""
    said: list[str] = []
    published.error = FailureError("the folder is full.")
    with publisher_of(tiny, tiny_store, said) as publisher:
        for _ in range(3):
            publisher.maybe_publish()
            publisher.wait()
    assert published.times == 4
    assert said == ["The dashboard is not up to date, the experiment goes on: the folder is full."]
    said.clear()
    published.error = KeyError("unforeseen")
    publisher_of(tiny, tiny_store, said).close()
    assert said == ["The dashboard is not up to date, the experiment goes on: KeyError: 'unforeseen'"]


def test_the_last_state_is_published_unless_the_command_failed(
    tiny: Tiny, tiny_store: Store, published: Published
) -> None:
    """Ctrl-C leaves the dashboard up to date; a failure is told without a publication before it."""
    with pytest.raises(SystemExit), publisher_of(tiny, tiny_store, []):
        raise SystemExit(130)
    assert published.times == 1
    with pytest.raises(FailureError), publisher_of(tiny, tiny_store, []):
        raise FailureError("the database is gone.")
    assert published.times == 1


# Helpers.


def attributes(store: Store) -> list[Any]:
    """Every row that the dashboard reads."""
    with store.read() as connection:
        query = "SELECT study_system_attribute_id, study_id, key, value_json FROM study_system_attributes ORDER BY 1"
        return [tuple(row) for row in connection.exec_driver_sql(query)]


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()}


def note_arms(layout: dict[str, Any]) -> list[str]:
    return [note["text"] for note in layout["annotations"]]


def _loopback() -> tuple[Any, tuple[str, int]]:
    return socket.AF_INET, ("127.0.0.1", 0)
