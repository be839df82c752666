"""The report in a browser: it opens from a file, draws everything, fits every width, and runs nothing foreign."""

from __future__ import annotations

import functools
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from fake_training import TECHNIQUES, finish
from playwright.sync_api import Browser, Page, sync_playwright
from report_data import HOSTILE, NAME, make_hostile

from study.analysis.evidence import Evidence, read
from study.figures.compose import composite
from study.figures.panel import Figure
from study.figures.theme import DARK, INK, PAPER
from study.report.files import _draw
from study.report.page import write_report
from study.report.sections import answer, sections
from study.store.locations import Local
from study.store.store import Store

pytest_plugins = ["tiny_study", "report_fixtures"]

#: Milliseconds; a machine that does other things too is slow.
PATIENCE = 120_000
PHONE, LAPTOP, DESKTOP = (390, 844), (1280, 800), (1440, 900)


#: Where Debian has a wide and a usual sans-serif, and its package.
FONTS = {
    "DejaVu Sans": ("/usr/share/fonts/truetype/dejavu", "fonts-dejavu-core"),
    "Liberation Sans": ("/usr/share/fonts/truetype/liberation", "fonts-liberation"),
}


def missing(what: str) -> None:
    """Skip, but fail in CI, where everything is there."""
    message = f"The tests in a browser need Debian's package {what}."
    if os.environ.get("CI") == "true":
        pytest.fail(message)
    pytest.skip(message)


Launch = Callable[..., Browser]


@pytest.fixture(scope="session")
def launch() -> Iterator[Launch]:
    """Starts the system's Chromium; closed with the session if not before."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        missing("chromium")
    # One for all browsers: a second one would not start beside it.
    with sync_playwright() as playwright:
        start = playwright.chromium.launch
        yield functools.partial(start, executable_path=chromium, args=["--no-sandbox"])


@pytest.fixture(scope="session")
def browser(launch: Launch) -> Iterator[Browser]:
    """Chromium with the fonts of this machine."""
    started = launch()
    yield started
    started.close()


@pytest.fixture(scope="module", params=list(FONTS))
def browser_with_one_font(
    launch: Launch, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Browser]:
    """Chromium on a machine that has one family of fonts."""
    folder, package = FONTS[request.param]
    if not Path(folder).is_dir():
        missing(package)
    place = tmp_path_factory.mktemp("fonts")
    cache = place / "fontconfig"
    config = place / "fonts.conf"
    config.write_text(
        f"<fontconfig><dir>{folder}</dir><cachedir>{cache}</cachedir><match target='pattern'>"
        f"<edit name='family' mode='append_last'><string>{request.param}</string></edit></match></fontconfig>"
    )
    started = launch(env={**os.environ, "FONTCONFIG_FILE": str(config)})
    yield started
    started.close()


@pytest.fixture(scope="session")
def hostile_file(made_up_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of the made-up experiment with payloads wherever its database holds free text."""
    path = tmp_path_factory.mktemp("hostile") / "optuna.db"
    with closing(sqlite3.connect(made_up_file)) as before, closing(sqlite3.connect(path)) as after:
        before.backup(after)
        after.execute("PRAGMA journal_mode=WAL")
    make_hostile(path)
    with Store.open(f"sqlite:///{path}", read_only=True) as store:
        return write_report(read(store, NAME), path.with_name("page.html"), path.parent, None)


@pytest.fixture(scope="session")
def real_file(finished_study: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of an experiment that was really run, with its model's pictures; its data's path is a payload."""
    with Store.open(finished_study.url, read_only=True) as store:
        path = tmp_path_factory.mktemp("real") / "page.html"
        return write_report(read(store, finished_study.name), path, Local(finished_study.artifacts), None)


@pytest.fixture(scope="module")
def guided_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a comparison by guided tuning, with response curves, of many arms."""
    folder = tmp_path_factory.mktemp("guided")
    arms = ["twice", "half-more", "neutral", "never"]
    techniques = TECHNIQUES | {"neutral": {"overrides": {"clip_norm": 1e6}}}
    values: dict[str, Any] = {"method": 2, "tune_trials": 8, "stop_at_target": True, "techniques": techniques}
    with finish(folder, arms=arms, **values).open() as (store, _):
        return write_report(read(store, "fake"), folder / "page.html", Local(folder / "artifacts"), None)


@pytest.fixture(scope="module")
def page(browser: Browser, hostile_file: Path) -> Iterator[Page]:
    """The hostile page on a desktop, for tests that only look, or that add to it."""
    with opened(browser, hostile_file) as (page, _):
        yield page


@contextmanager
def opened(
    browser: Browser, file: Path, size: tuple[int, int] = DESKTOP, scheme: Any = "light"
) -> Iterator[tuple[Page, list[str]]]:
    """The page, drawn, and what it complained about or asked for beside itself."""
    context = browser.new_context(viewport={"width": size[0], "height": size[1]}, color_scheme=scheme)
    page = context.new_page()
    page.set_default_timeout(PATIENCE)
    heard: list[str] = []
    page.on("console", lambda message: heard.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: heard.append(str(error)))
    page.on(
        "request", lambda request: heard.append(request.url) if not request.url.startswith("data:") else None
    )
    page.goto(file.as_uri())
    drawn(page)
    heard.remove(file.as_uri())
    yield page, heard
    context.close()


def drawn(page: Page) -> None:
    """Wait until every graph that is shown has been drawn. (The page forbids what wait_for_function does.)"""
    page.wait_for_selector('html[data-drawn="true"]', state="attached")


#: Ids of graphs that are shown without a visible mark of their data.
EMPTY = """() => [...document.querySelectorAll('.graph')].filter(graph => graph.clientWidth).filter(graph =>
    ![...graph.querySelectorAll('.trace path, .point path')].some(path => {
        const box = path.getBoundingClientRect(); return box.width + box.height > 1; })).map(graph => graph.id)"""

#: Texts of graphs that leave their graph, by more than a pixel.
CUT = """() => [...document.querySelectorAll('.graph')].filter(graph => graph.clientWidth).flatMap(graph => {
    const frame = graph.getBoundingClientRect();
    return [...graph.querySelectorAll('svg text')].filter(text => text.textContent.trim()).filter(text => {
        const box = text.getBoundingClientRect();
        return box.width && (box.left < frame.left - 1 || box.right > frame.right + 1 ||
                             box.top < frame.top - 1 || box.bottom > frame.bottom + 1);
    }).map(text => `${graph.id}: ${text.textContent}`); })"""

#: Level labels of one axis that lie on each other.
OVERLAPPING = """() => [...document.querySelectorAll('.graph')].filter(graph => graph.clientWidth).flatMap(graph =>
    ['.xtick text', '.ytick text', '.legendtext'].flatMap(kind => {
        const turned = /rotate\\((?!0)/;
        const texts = [...graph.querySelectorAll(kind)].filter(text => !turned.test(text.getAttribute('transform')));
        const boxes = texts.map(text => text.getBoundingClientRect());
        return texts.filter((text, i) => boxes.some((b, j) => j > i && b.left < boxes[i].right - 1 &&
            boxes[i].left < b.right - 1 && b.top < boxes[i].bottom - 2 && boxes[i].top < b.bottom - 2))
            .map(text => `${graph.id}: ${text.textContent}`); }))"""


@pytest.mark.parametrize("size", [PHONE, DESKTOP], ids=["phone", "desktop"])
@pytest.mark.parametrize("kind", ["hostile_file", "real_file", "guided_file"])
def test_opens_alone_and_draws_everything(
    browser: Browser, kind: str, size: tuple[int, int], request: pytest.FixtureRequest
) -> None:
    """From file://: no word on the console, no request, no payload run, data in every graph, and nothing that
    leaves its frame, lies on its neighbour or makes the page scroll sideways."""
    with opened(browser, request.getfixturevalue(kind), size) as (page, heard):
        assert page.evaluate(EMPTY) == []
        assert page.evaluate("document.documentElement.scrollWidth") <= size[0]
        assert page.evaluate(CUT) == []
        assert page.evaluate(OVERLAPPING) == []
        assert page.evaluate("window.pwned") is None
        assert page.locator(".graph").count() > 20
        assert heard == []


@pytest.mark.parametrize("size", [PHONE, DESKTOP], ids=["phone", "desktop"])
def test_every_text_has_room_in_any_font(
    browser_with_one_font: Browser, hostile_file: Path, size: tuple[int, int]
) -> None:
    """With a wide and with a usual sans-serif nothing is cut, lies on its neighbour or makes the page scroll."""
    with opened(browser_with_one_font, hostile_file, size) as (page, heard):
        assert page.evaluate(CUT) == []
        assert page.evaluate(OVERLAPPING) == []
        assert page.evaluate("document.documentElement.scrollWidth") <= size[0]
        assert heard == []


def test_graphs_of_a_row_line_up(browser: Browser, hostile_file: Path) -> None:
    """However many lines its title takes, a graph begins where its neighbours do."""
    for size in (PHONE, LAPTOP):
        with opened(browser, hostile_file, size) as (page, _):
            uneven = page.evaluate("""() => [...document.querySelectorAll('.grid .panels, .pair .panels')]
                .flatMap(panels => {
                    const boxes = [...panels.querySelectorAll('.panel')].map(panel =>
                        [panel.getBoundingClientRect(), panel.querySelector('.graph').getBoundingClientRect()]);
                    return boxes.filter(([panel, graph]) => panel.width && boxes.some(([other, its]) =>
                        other.width && Math.abs(other.top - panel.top) < 1 && Math.abs(its.top - graph.top) > 1));
                }).length""")
            assert uneven == 0


def test_tables_take_the_free_page(browser: Browser, hostile_file: Path) -> None:
    """At 1280 px no table is cut while there is room right of it, and the page itself doesn't scroll."""
    with opened(browser, hostile_file, LAPTOP) as (page, _):
        cut = page.evaluate("""() => [...document.querySelectorAll('.scroll')]
            .filter(box => box.scrollWidth > box.clientWidth + 1 && box.getBoundingClientRect().right < innerWidth - 60)
            .map(box => box.firstElementChild.id)""")
        assert cut == []
        assert page.evaluate("document.documentElement.scrollWidth") <= LAPTOP[0]


def test_hostile_text_is_shown(page: Page) -> None:
    """Payloads are read, not run: the reason of a failed trial and the data's name are there letter by letter."""
    reason = page.locator("#table-failures tbody tr").first.locator("td").nth(4)
    assert reason.inner_text() == HOSTILE
    assert HOSTILE in page.locator("#table-provenance-facts").inner_text()


def test_policy_stops_what_is_injected(page: Page) -> None:
    """Even markup that got into the page could not run, nor fetch."""
    stopped = page.evaluate("""() => new Promise(resolve => {
        const stopped = [];
        document.addEventListener('securitypolicyviolation', event => {
            stopped.push(event.effectiveDirective); if (stopped.length === 4) resolve(stopped.sort()); });
        const script = document.createElement('script');
        script.textContent = 'window.pwned = 1';
        document.body.append(script);
        document.body.insertAdjacentHTML('beforeend',
            '<img src="data:," onerror="window.pwned = 2"><img src="https://example.com/x.png">');
        fetch('https://example.com').catch(() => {});
    })""")
    assert stopped == ["connect-src", "img-src", "script-src-attr", "script-src-elem"]
    assert page.evaluate("window.pwned") is None


def test_forest_says_what_the_table_says(page: Page) -> None:
    """Arm by arm, the drawn marker and the printed number of the forest plot are the table's."""
    rows = page.locator("#table-arms tbody tr")
    table = {
        row.locator("th").inner_text().strip(): row.locator("td").nth(2).inner_text() for row in rows.all()
    }
    shown = page.evaluate("""() => {
        const graph = document.getElementById('graph-forest'), axis = graph._fullLayout.xaxis;
        const names = graph._fullLayout.yaxis.ticktext, found = {};
        graph._fullData.forEach((trace, i) => {
            if (trace.mode !== 'markers') return;
            const points = graph.querySelectorAll(`.scatterlayer .trace`)[i].querySelectorAll('path.point');
            trace.x.forEach((x, k) => {
                const box = points[k].getBoundingClientRect();
                const pixel = (box.left + box.right) / 2 - graph.getBoundingClientRect().left - axis._offset;
                found[names[trace.y[k]]] = {x, drawn: 10 ** axis.p2l(pixel), symbol: trace.marker.symbol};
            });
        });
        return found;
    }""")
    printed = page.locator("#graph-forest .annotation-text").all_text_contents()
    whole = {arm: text for arm, text in table.items() if "[" in text}
    assert len(whole) >= 2
    assert len(shown) == len(table) - 1
    for arm, text in whole.items():
        assert f"{shown[arm]['x']:.2f}x" == text.split()[0]
        assert shown[arm]["drawn"] == pytest.approx(shown[arm]["x"], rel=0.02)
        assert text in printed


def test_tables_sort_by_mouse_and_keyboard(browser: Browser, hostile_file: Path) -> None:
    """A header's button sorts, again turns the order, and what has no value stays last."""
    with opened(browser, hostile_file, PHONE) as (page, _):
        head = page.locator("#table-arms thead th").nth(3)
        column = page.locator("#table-arms tbody td:nth-of-type(3)")

        def ratios() -> list[float]:
            texts = column.all_inner_texts()
            assert sorted(texts, key=lambda text: text == "–") == texts
            return [float(text.removeprefix("at most ").split("x")[0]) for text in texts if text != "–"]

        head.locator("button").click()
        assert head.get_attribute("aria-sort") == "ascending"
        assert ratios() == sorted(ratios())
        head.locator("button").focus()
        page.keyboard.press("Enter")
        assert head.get_attribute("aria-sort") == "descending"
        assert ratios() == sorted(ratios(), reverse=True)
        assert len(ratios()) > 2
        assert page.locator("#table-arms th[aria-sort='none']").count() == 8
        assert "descending" in page.locator("#status").inner_text()


def test_colours_follow_the_reader(browser: Browser, hostile_file: Path) -> None:
    """Page and graphs change together when the reader's preference does, and print is light."""
    with opened(browser, hostile_file, DESKTOP, "dark") as (page, heard):
        assert colours(page) == (DARK[PAPER], DARK[INK])
        page.emulate_media(color_scheme="light")
        drawn(page)
        assert colours(page) == (PAPER, INK)
        page.emulate_media(color_scheme="dark")
        drawn(page)
        assert colours(page) == (DARK[PAPER], DARK[INK])
        page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
        assert colours(page) == (PAPER, INK)
        widest = page.evaluate(
            "Math.max(...[...document.querySelectorAll('.graph')].map(g => g.clientWidth))"
        )
        assert widest <= 760
        assert page.locator("#curves-seconds").is_visible()
        assert page.evaluate(EMPTY) == []
        page.evaluate("window.dispatchEvent(new Event('afterprint'))")
        assert colours(page) == (DARK[PAPER], DARK[INK])
        assert not page.locator("#curves-seconds").is_visible()
        assert heard == []


def colours(page: Page) -> tuple[str, str]:
    """The page's paper, and the ink of the forest plot's arm names, as #rrggbb."""
    found = page.evaluate("""() => {
        const hex = text => '#' + text.match(/\\d+/g).slice(0, 3).map(n => (+n).toString(16).padStart(2, '0')).join('');
        return [hex(getComputedStyle(document.body).backgroundColor),
                hex(getComputedStyle(document.querySelector('#graph-forest .ytick text')).fill)];
    }""")
    return found[0], found[1]


def test_everything_is_reached_by_keyboard(browser: Browser, hostile_file: Path) -> None:
    """Tab meets the link past the header first; arrows switch the curves to seconds; tables that scroll, texts to
    copy and closed parts take the focus."""
    with opened(browser, hostile_file, PHONE) as (page, heard):
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.className") == "skip"
        page.locator("input[name=curves]").first.focus()
        page.keyboard.press("ArrowRight")
        drawn(page)
        assert page.locator("#curves-seconds").is_visible()
        assert not page.locator("#curves-examples").is_visible()
        assert page.evaluate(EMPTY) == []
        unreachable = page.evaluate("""() => [...document.querySelectorAll('.scroll, pre, summary, a, button, input')]
            .filter(part => part.tabIndex < 0).length""")
        assert unreachable == 0
        page.locator("button.copy").first.click()
        page.wait_for_selector("button.copy:text('Copied')")
        assert heard == []


def test_resizing_redraws(browser: Browser, hostile_file: Path) -> None:
    """Turned from wide to narrow, graphs take the new width and the forest plot has its numbers below the names."""
    with opened(browser, hostile_file) as (page, _):
        beside = page.locator("#graph-forest .annotation-text").all_text_contents()
        assert len(beside) > 3
        page.set_viewport_size({"width": PHONE[0], "height": PHONE[1]})
        page.wait_for_timeout(300)
        drawn(page)
        assert page.locator("#graph-forest .annotation-text").count() == 0
        below = page.locator("#graph-forest .ytick tspan.line:last-child").all_text_contents()
        assert below == beside
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE[0]
        assert page.evaluate(CUT) == []


def test_figures_become_image_files(browser: Browser, made_up: Evidence, tmp_path: Path) -> None:  # noqa: ARG001
    """kaleido writes a figure as PNG and SVG with the same arms in it. (`browser` skips where there is none.)"""
    (forest,) = [block for block in answer(made_up).blocks if isinstance(block, Figure)]
    (curves,) = [
        b for part in sections(made_up) for b in part.blocks if isinstance(b, Figure) and b.id == "by-target"
    ]
    specifications = []
    for block, format in ((forest, "svg"), (curves, "png")):
        figure = composite(block)
        options = {"format": format, "width": figure.layout.width, "height": figure.layout.height, "scale": 1}
        path = tmp_path / f"{block.id}.{format}"
        specifications.append({"fig": figure.to_plotly_json(), "path": path, "opts": options})
    _draw(specifications)
    assert (tmp_path / "by-target.png").read_bytes().startswith(b"\x89PNG")
    svg = (tmp_path / "forest.svg").read_text()
    assert all(arm in svg for arm in made_up.arms if arm != "baseline")
