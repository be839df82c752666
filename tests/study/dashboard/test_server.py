"""The dashboard as it is served: what it shows, what its buttons do, and what is refused."""

from __future__ import annotations

import hashlib
import json
import re
import threading
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
import pytest

from study.dashboard.publisher import publish
from study.dashboard.server import Listening, listen
from study.store import records
from study.store.locations import Local
from study.store.store import Store
from vae.errors import FailureError, UserError

if TYPE_CHECKING:
    from tiny_study import Open, Tiny

pytest_plugins = ["tiny_study"]


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
        publish(store, tiny.name, Local(tiny.artifacts), None)
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
    records.add_throughput(
        tiny_store,
        tiny.name,
        "muon",
        9,
        examples_per_second=900.0,
        baseline_examples_per_second=1000.0,
        cold_start_seconds=None,
    )
    publish(tiny_store, tiny.name, Local(tiny.artifacts), None)
    after = client.study(f"{tiny.name}/baseline")["note"]["body"]
    assert after.endswith("Checked by hand.")
    assert after != edited["body"]


def test_a_study_deleted_in_the_dashboard_takes_our_rows_along(
    tiny: Tiny, tiny_store: Store, open_dashboard: Open
) -> None:
    """The delete button works on loopback, and removes the study's runs, curves and image files."""
    client = open_dashboard(tiny.url)
    study_id = client.study_id(f"{tiny.name}/search")
    assert tiny.images()
    status, _, content = client.request(
        f"/api/studies/{study_id}", "DELETE", {"remove_associated_artifacts": True}
    )
    assert status == 204, content
    assert f"{tiny.name}/search" not in records.study_ids(tiny_store, tiny.name)
    assert "search" not in set(records.trials(tiny_store, tiny.name)["phase"])
    assert "search" not in set(records.curves(tiny_store, tiny.name)["phase"])
    assert tiny.images() == {}


def test_where_others_reach_it_nothing_can_be_changed(tiny: Tiny, open_dashboard: Open) -> None:
    """Off loopback there is no login, so every button answers 403 and the database stays."""
    client = open_dashboard(tiny.url, local=False)
    before = tiny.images()
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
    assert tiny.images() == before


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


@pytest.mark.parametrize("site", ["cross-site", "same-site", "unheard-of"])
def test_a_page_that_hides_its_origin_can_change_nothing(tiny: Tiny, open_dashboard: Open, site: str) -> None:
    """A form of another site (or of another port of this machine) without an Origin is told by Sec-Fetch-Site; a
    program that sends neither header, and our own page, are served. A link from elsewhere may be followed."""
    client = open_dashboard(tiny.url)
    new = {"study_name": "new", "directions": ["minimize"]}
    status, _, content = client.request("/api/studies", "POST", new, sec_fetch_site=site)
    assert status == 403
    assert "another site" in json.loads(content)["reason"]
    assert client.request("/dashboard", sec_fetch_site=site)[0] == 200
    assert client.request("/api/studies", "POST", new, sec_fetch_site="same-origin")[0] == 201
    assert client.request("/api/studies", "POST", new | {"study_name": "third"})[0] == 201


@pytest.mark.parametrize("local", [True, False])
@pytest.mark.parametrize(
    "host", ["[", "[::1", "127.0.0.1:x", "a b", "user@127.0.0.1", "127.0.0.1, 127.0.0.1", "a/b", "é", "%6c"]
)
def test_a_malformed_host_is_a_bad_request(
    tiny: Tiny, open_dashboard: Open, capfd: pytest.CaptureFixture[str], host: str, local: bool
) -> None:
    """What is no host and port is answered with 400 and one line, whether others reach the dashboard or not."""
    status, _, content = open_dashboard(tiny.url, local=local).request("/api/studies", host=host)
    assert status == 400
    assert "Host" in json.loads(content)["reason"]
    assert capfd.readouterr().err == ""


def test_no_page_shows_ours_in_a_frame(tiny: Tiny, open_dashboard: Open) -> None:
    """Every answer forbids to be framed: nobody's clicks can be stolen for the delete button."""
    client = open_dashboard(tiny.url)
    new = {"study_name": "new", "directions": ["minimize"]}
    for path, method, body in (("/dashboard", "GET", None), ("/api/studies", "POST", new)):
        headers = client.request(path, method, body)[1]
        assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
        assert headers["X-Frame-Options"] == "DENY"


def test_a_study_without_parameters_has_no_importances(
    tiny: Tiny, tiny_store: Store, open_dashboard: Open, capfd: pytest.CaptureFixture[str]
) -> None:
    """Arms whose recipe is given, such as search-best, are no error of the server; the others keep theirs."""
    fixed = optuna.create_study(study_name=f"{tiny.name}/given", storage=tiny_store.optuna)
    asked = optuna.create_study(study_name="asked", storage=tiny_store.optuna)
    for i in range(3):
        fixed.add_trial(optuna.trial.create_trial(value=float(i)))
        x = optuna.distributions.FloatDistribution(0.0, 1.0)
        asked.add_trial(
            optuna.trial.create_trial(value=float(i), params={"x": 0.3 * i}, distributions={"x": x})
        )
    client = open_dashboard(tiny.url)
    for study, names in ((f"{tiny.name}/given", []), ("asked", ["x"])):
        path = f"/api/studies/{client.study_id(study)}/param_importances"
        for slashes in ("", "/"):
            (found,) = client.get(path + slashes)["param_importances"]
            assert [share["name"] for share in found] == names
    assert client.request("/api/studies/999/param_importances")[0] == 404
    assert capfd.readouterr().err == ""


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
    assert headers["Content-Security-Policy"] == "sandbox; default-src 'none'; frame-ancestors 'none'"
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


def test_it_is_known_where_it_listens(tiny: Tiny) -> None:
    """Any free port is had and named, and requests to it are answered in turn, Ctrl-C or not."""
    with listen(tiny.url, Local(tiny.artifacts), "127.0.0.1", 0, print) as dashboard:
        assert dashboard.local
        assert dashboard.url == f"http://127.0.0.1:{dashboard.port}/"
        threading.Thread(target=dashboard.serve, daemon=True).start()
        with urllib.request.urlopen(f"{dashboard.url}api/studies", timeout=60) as answer:
            assert len(json.load(answer)["study_summaries"]) == 6


def test_it_is_known_where_others_reach_it(tiny: Tiny) -> None:
    """Off loopback the command is told, for its warning; an IPv6 address makes an address that browsers read."""
    with listen(tiny.url, Local(tiny.artifacts), "0.0.0.0", 0, print) as dashboard:
        assert not dashboard.local
    assert Listening("optuna.db", "::1", 8080, True, print).url == "http://[::1]:8080/"


def test_a_port_in_use_is_named_with_the_way_out(tiny: Tiny) -> None:
    """Two dashboards on one port: the second says which port, and how to choose another."""
    with listen(tiny.url, Local(tiny.artifacts), "127.0.0.1", 0, print) as first:
        port = first.port
        way_out = rf"Port {port} of 127\.0\.0\.1 is in use.*--port {port + 1}"
        with (
            pytest.raises(UserError, match=way_out) as caught,
            listen(tiny.url, Local(tiny.artifacts), "127.0.0.1", port, print),
        ):
            pass
    assert "\n" not in str(caught.value)
    with listen(tiny.url, Local(tiny.artifacts), "127.0.0.1", port, print) as again:
        assert again.port == port


@pytest.mark.parametrize(
    ("host", "words"), [("no.such.invalid", "is no address"), ("192.0.2.7", "is no address")]
)
def test_a_host_of_no_use_is_one_line(tiny: Tiny, host: str, words: str) -> None:
    """A host that isn't this machine is refused with the way out."""
    with (
        pytest.raises(UserError, match=f"--host {re.escape(host)} {words}.*--host 127.0.0.1"),
        listen(tiny.url, Local(tiny.artifacts), host, 0, print),
    ):
        pass


def test_a_missing_database_is_one_line(tmp_path: Path) -> None:
    """No database, no server, and none is made."""
    with (
        pytest.raises(UserError, match=r"No database .*optuna\.db"),
        listen(f"sqlite:///{tmp_path / 'optuna.db'}", tmp_path, "127.0.0.1", 0, print),
    ):
        pass
    assert list(tmp_path.iterdir()) == []
