"""The dashboard in a real browser, served by the command as a user starts it."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import optuna
import optuna_dashboard
import plotly.graph_objects as go
import pytest

from study.analysis.evidence import read
from study.analysis.sentences import sentences
from study.analysis.words import examples_of, speed_up_of
from study.store.store import Store

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page
    from tiny_study import Tiny

pytest_plugins = ["tiny_study"]


@dataclass
class Served:
    """A running dashboard: its address, its process, and the experiment it shows."""

    address: str
    process: subprocess.Popen[str]
    tiny: Tiny

    def study(self, study_name: str) -> str:
        """The address of a study's page."""
        with Store.open(self.tiny.url, read_only=True) as store:
            return f"{self.address}/dashboard/studies/{store.optuna.get_study_id_from_name(study_name)}"


@dataclass
class Watched:
    """A page, and all that should not have happened on it."""

    page: Page
    errors: list[str] = field(default_factory=list)
    outside: list[str] = field(default_factory=list)

    def check(self) -> None:
        """No error, no request to anywhere else, and no hostile text has run."""
        assert self.errors == []
        assert self.outside == []
        assert self.page.evaluate("window.pwned") is None
        assert self.page.locator("img[src='x']").count() == 0
        assert self.page.locator("a[href^='javascript']").count() == 0


@contextmanager
def running(tiny: Tiny, *before: str) -> Iterator[Served]:
    """`python -m study dashboard` on a free port, ended with Ctrl-C; `before` is what starts it, if not we."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        *before,
        sys.executable,
        "-m",
        "study",
        "dashboard",
        "--storage",
        tiny.url,
        "--port",
        str(port),
    ]
    process = subprocess.Popen(
        [*command, "--artifacts", str(tiny.artifacts)],
        cwd=tiny.folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    with process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert f"http://127.0.0.1:{port}/" in line, line + process.stdout.read()
            yield Served(f"http://127.0.0.1:{port}", process, tiny)
        finally:
            process.send_signal(signal.SIGINT)


@pytest.fixture(scope="module")
def served(finished_study: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The finished experiment's dashboard, with a foreign study beside ours whose every text is hostile."""
    tiny = finished_study.copy(tmp_path_factory.mktemp("served"))
    with Store.open(tiny.url) as store:
        foreign = optuna.create_study(study_name=tiny.hostile, storage=store.optuna)
        foreign.set_user_attr(tiny.hostile, tiny.hostile)
        foreign.add_trial(optuna.trial.create_trial(value=1.0, user_attrs={tiny.hostile: tiny.hostile}))
        optuna_dashboard.save_note(foreign, f"{tiny.hostile}\n\n<script>window.pwned=1</script>")
        figure = go.Figure(go.Scatter(y=[1, 2], name=tiny.hostile), layout={"title": tiny.hostile})
        optuna_dashboard.save_plotly_graph_object(foreign, figure, graph_object_id="hostile")
    with running(tiny) as server:
        yield server


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """The system's Chromium. Where it is missing: skip, but fail in CI."""
    chromium = shutil.which("chromium")
    if chromium is None:
        message = "The tests in a browser need Debian's package chromium."
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.fixture
def watched(browser: Browser) -> Iterator[Watched]:
    """A new page that is watched; `check` has the last word."""
    page = browser.new_page(viewport={"width": 1440, "height": 1000})
    page.set_default_timeout(60_000)
    found = Watched(page)
    page.on("console", lambda said: found.errors.append(said.text) if said.type == "error" else None)
    page.on("pageerror", lambda error: found.errors.append(str(error)))
    page.on("dialog", lambda dialog: found.errors.append(dialog.message))
    page.on(
        "request", lambda request: found.outside.append(request.url) if _is_outside(request.url) else None
    )
    yield found
    found.check()
    page.close()


def _is_outside(url: str) -> bool:
    parts = urlsplit(url)
    return parts.scheme not in ("data", "blob") and parts.hostname != "127.0.0.1"


def test_the_note_shows_the_verdict_table(served: Served, watched: Watched) -> None:
    """The baseline's note is a table with the estimate's figures, under sentences that quote a hostile path
    letter by letter."""
    page, tiny = watched.page, served.tiny
    page.goto(served.study(f"{tiny.name}/baseline") + "/note")
    page.locator("table tbody tr").first.wait_for()
    rows = {cells[0]: cells for cells in (texts(row, "td") for row in page.locator("table tbody tr").all())}
    with Store.open(tiny.url, read_only=True) as store:
        comparison = read(store, tiny.name).comparison
    assert comparison is not None
    assert next(iter(rows)) == "baseline"
    assert set(rows) == {arm.arm for arm in comparison.arms}
    for arm in comparison.arms:
        if arm.examples is not None and arm.seconds is not None:
            assert rows[arm.arm][2:4] == [examples_of(arm), arm.examples.words]
            assert rows[arm.arm][5:7] == [speed_up_of(arm.seconds), arm.seconds.words]
    said = page.locator("p").all_inner_texts()
    assert [sentence for sentence in said if tiny.hostile in sentence]
    assert set(sentences(comparison)) <= set(said)


def test_the_plots_are_drawn(served: Served, watched: Watched) -> None:
    """Forest, survival and learning curves have visible marks, keep within their box, and the forest plot's
    numbers are the note's."""
    page, tiny = watched.page, served.tiny
    page.goto(served.study(f"{tiny.name}/baseline"))
    for graph in ("vae-forest", "vae-survival", "vae-curves"):
        box = page.locator(f"[id='user-defined-plot:{graph}']")
        box.locator(".scatterlayer .trace path").first.wait_for(state="attached")
        sizes = box.locator(".scatterlayer .trace path").evaluate_all(
            "paths => paths.map(path => path.getBBox()).map(box => box.width + box.height)"
        )
        assert sum(size > 2 for size in sizes) >= len(tiny.arms), (graph, sizes)
        outer, drawn = box.bounding_box(), box.locator(".main-svg").first.bounding_box()
        assert outer is not None
        assert drawn is not None
        assert drawn["height"] <= outer["height"]
        assert drawn["width"] <= outer["width"]
    forest = page.locator("[id='user-defined-plot:vae-forest'] .annotation-text").all_text_contents()
    with Store.open(tiny.url, read_only=True) as store:
        comparison = read(store, tiny.name).comparison
    assert comparison is not None
    known = [arm.examples for arm in comparison.arms if arm.examples is not None and arm.examples.known]
    assert known
    assert {speed_up_of(measure) for measure in known} <= set(forest)


def test_an_arm_without_parameters_has_its_page(served: Served, watched: Watched) -> None:
    """The cards of search-best, whose recipe is given, show no error of the server."""
    page, tiny = watched.page, served.tiny
    with page.expect_response(lambda answer: answer.url.endswith("/param_importances")) as asked:
        page.goto(served.study(f"{tiny.name}/search-best"))
    assert asked.value.status == 200
    assert asked.value.json() == {"param_importances": [[]]}
    page.get_by_text("Hyperparameter Importance").first.wait_for()
    assert page.get_by_text("internal server error").count() == 0


def test_the_images_are_loaded(served: Served, watched: Watched) -> None:
    """The search's note and its best trial's page show both pictures."""
    page, tiny = watched.page, served.tiny
    page.goto(served.study(f"{tiny.name}/search") + "/note")
    assert sorted(widths(page, 2)) == sorted(widths(page, 2))
    assert min(widths(page, 2)) > 500
    link = page.get_by_role("link", name="open").get_attribute("href")
    page.goto(served.address + str(link))
    page.get_by_text("samples.png").wait_for()
    assert min(widths(page, 2)) > 500


def test_an_arms_note_leads_to_the_whole_answer(served: Served, watched: Watched) -> None:
    """From any arm's study one click opens the table of all arms."""
    page, tiny = watched.page, served.tiny
    page.goto(served.study(f"{tiny.name}/muon") + "/note")
    page.get_by_role("link", name="open").click()
    page.locator("table tbody tr").first.wait_for()
    assert page.url == served.study(f"{tiny.name}/baseline") + "/note"


def test_hostile_texts_of_a_study_do_not_run(served: Served, watched: Watched) -> None:
    """A study's hostile name, attributes, note and plot are shown as text on every page that has them."""
    page, tiny = watched.page, served.tiny
    page.goto(f"{served.address}/dashboard")
    page.get_by_text("<img src=x", exact=False).first.wait_for()
    watched.check()
    home = served.study(tiny.hostile)
    for path in ("/note", "", "/trials?numbers=0", "/trialTable"):
        page.goto(home + path)
        page.get_by_text("<img src=x", exact=False).first.wait_for()
        if path == "":
            page.locator("[id='user-defined-plot:hostile'] .trace path").first.wait_for(state="attached")
        page.wait_for_timeout(300)
        watched.check()


@pytest.mark.parametrize("before", [[], ["sh", "-c", 'trap "" INT; exec "$@"', "sh"]], ids=["", "ignored"])
def test_ctrl_c_ends_it_quietly(finished_study: Tiny, tmp_path: Path, before: list[str]) -> None:
    """Ctrl-C ends the command with code 0 and not one line more, also where what started it ignores Ctrl-C."""
    with running(finished_study.copy(tmp_path), *before) as server:
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(timeout=60) == 0
        assert server.process.stdout is not None
        assert server.process.stdout.read() == ""


def texts(row: Any, kind: str) -> list[str]:
    return [re.sub(r"\s+", " ", text).strip() for text in row.locator(kind).all_inner_texts()]


def widths(page: Page, n: int) -> list[int]:
    """The natural widths of the page's n artifact images, once they are loaded."""
    images = page.locator("img[src^='/artifacts/']")
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        found: list[int] = images.evaluate_all("images => images.map(image => image.naturalWidth)")
        if len(found) == n and all(found):
            return found
        page.wait_for_timeout(100)
    raise AssertionError(f"{n} images expected, widths {found}")
