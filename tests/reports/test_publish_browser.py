"""A published site in a real browser: it sorts, filters, asks nothing of a network, and takes names for text.

Needs Playwright and a Chromium on the path, which `make browser` installs; without them the tests are skipped.
"""

from __future__ import annotations

import functools
import http.server
import re
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lrbench.cli import main
from tests.support.publishing import HOSTILE, MODEL, each_run, hostile_run, select_by_cell
from tests.support.synthetic_run import demo_run

playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed (lrbench[browser])")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PUBLISHED = Path(__file__).parents[2] / "results" / "published"

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here (chromium, chromium-browser or google-chrome)"),
]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three runs of three models, one with hostile names, and a spectrum."""
    folder = tmp_path_factory.mktemp("browser")
    each_run(folder / "laser")
    demo_run(folder / "demo", model="pythia")
    hostile_run(folder / "hostile")
    runs = [str(folder / name) for name in ("laser", "demo", "hostile")]
    spectrum = PUBLISHED / "almanac-spectrum" / "spectrum.json"
    assert main(["publish", *runs, "--to", str(folder / "site"), "--spectrum", str(spectrum)]) == 0
    return folder / "site"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


class Visit:
    """A page, with what it asked for and complained of."""

    def __init__(self, browser: Any, **context: Any) -> None:
        self.context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **context})
        self.page = self.context.new_page()
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self.page.on("console", lambda message: self.complaints.append(f"{message.type}: {message.text}"))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.complaints.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        # The protocol's own events: they see what no script of the page would.
        network = self.context.new_cdp_session(self.page)
        network.send("Network.enable")
        network.on("Network.requestWillBeSent", lambda event: self.requests.append(event["request"]["url"]))
        network.on("Network.webSocketCreated", lambda event: self.requests.append(event["url"]))

    def go(self, path: Path | str) -> Any:
        self.page.goto(path if isinstance(path, str) else path.as_uri())
        return self.page


@pytest.fixture
def visit(browser: Any) -> Iterator[Any]:
    visits: list[Visit] = []

    def start(**context: Any) -> Visit:
        visits.append(Visit(browser, **context))
        return visits[-1]

    yield start
    for each in visits:
        complaints = each.complaints
        each.context.close()
        assert complaints == []


def _column(page: Any, name: str, table: str = "section.model:nth-of-type(2)") -> list[str]:
    """What stands in a column of the visible rows of the second model, pythia."""
    return page.eval_on_selector_all(
        f"{table} .board .rows > tr:not([hidden])",
        "(rows, name) => { if (name === 'method') return rows.map(r => r.dataset.method);"
        "  const heads = rows.length ? [...rows[0].closest('table').tHead.rows[0].cells] : [];"
        "  const place = heads.findIndex(head => head.dataset.c === name);"
        "  return rows.map(r => r.cells[place].firstChild.textContent.trim()); }",
        name,
    )


def _header(page: Any, name: str) -> Any:
    return page.locator(f"section.model:nth-of-type(2) .board thead th[data-c='{name}']")


def _until(page: Any, condition: str) -> None:
    """Waits as `wait_for_function` does, which the pages' policy forbids: it evaluates text."""
    for _ in range(100):
        if page.evaluate(condition):
            return
        page.wait_for_timeout(100)
    raise AssertionError(f"never: {condition}")


def test_no_page_asks_for_anything_outside_the_site(site: Path, visit: Any) -> None:
    seen = visit()
    rows = sorted((site / "rows").iterdir())
    for path in [*sorted(site.glob("*.html")), rows[0], rows[-1]]:
        page = seen.go(path)
        page.evaluate("scrollTo(0, document.body.scrollHeight)")
        page.wait_for_timeout(150)
    assert seen.requests
    assert all(url.startswith((site.as_uri(), "data:")) for url in seen.requests), seen.requests
    # And it could not if it wished to.
    refused = seen.page.evaluate(
        "() => new Promise(done => { document.addEventListener('securitypolicyviolation', "
        "event => done(event.effectiveDirective)); fetch('http://127.0.0.1:9/').catch(() => {}); })"
    )
    assert refused == "connect-src"
    assert all("Content Security Policy" in text or "Failed to load" in text for text in seen.complaints)
    seen.complaints.clear()


def test_it_works_from_a_server_in_a_folder_too(site: Path, visit: Any) -> None:
    quiet = type("Quiet", (http.server.SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(quiet, directory=str(site.parent)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        base = f"http://127.0.0.1:{server.server_port}/site/"
        seen = visit()
        page = seen.go(base + "figures.html")
        page.wait_for_selector(".live svg")
        page.click("nav >> text=Leaderboard")
        page.wait_for_selector("#controls:not([hidden])")
        assert all(url.startswith((base, "data:")) for url in seen.requests), seen.requests
    finally:
        server.shutdown()


def test_a_column_sorts_both_ways_and_back_with_the_baseline_above(site: Path, visit: Any) -> None:
    page = visit().go(site / "index.html")
    before = _column(page, "method")
    header = _header(page, "error")
    header.locator("button").click()
    assert header.get_attribute("aria-sort") == "ascending"
    values = [float(text) for text in _column(page, "error")]
    assert values == sorted(values)
    assert len(values) == 18
    header.locator("button").click()
    assert header.get_attribute("aria-sort") == "descending"
    assert [float(text) for text in _column(page, "error")] == sorted(values, reverse=True)
    assert page.locator("section.model:nth-of-type(2) .board tbody").first.get_attribute("class") == "pinned"
    header.locator("button").click()
    assert header.get_attribute("aria-sort") is None
    assert _column(page, "method") == before
    shares = _header(page, "almanac_facts")
    shares.locator("button").click()
    assert shares.get_attribute("aria-sort") == "descending"
    scores = [float(text) for text in _column(page, "almanac_facts")]
    assert scores == sorted(scores, reverse=True)


def test_rows_are_filtered_by_model_method_setting_role_and_words(site: Path, visit: Any) -> None:
    page = visit().go(site / "index.html")

    def only(menu: str, value: str) -> None:
        page.click(f"[data-menu={menu}] summary")
        page.click(f"[data-menu={menu}] [data-all='']")
        page.locator(f"[data-menu={menu}] label", has_text=re.compile(f"^{value}$")).click()
        page.keyboard.press("Escape")

    only("method", "svd")
    assert set(_column(page, "method")) == {"svd"}
    assert len(_column(page, "method")) == 3
    only("setting", "keep 0.5")
    assert _column(page, "setting") == ["keep 0.5"]
    assert "of " in page.inner_text("#shown")
    page.click("#reset")
    assert len(_column(page, "method")) == 18
    only("model", "almanac")
    assert page.locator("section.model:visible").count() == 1
    only("role", "attn.o")
    laser = "section.model:nth-of-type(1)"
    assert set(_column(page, "edited", laser)) == {f"L{layer} attn.o" for layer in range(4)}
    page.click("#reset")
    page.fill("#find", "cur 0.25")
    assert _column(page, "method") == ["cur"]
    page.fill("#find", "no such row")
    assert _column(page, "method") == []


def test_columns_and_tasks_are_shown_and_hidden(site: Path, visit: Any) -> None:
    page = visit().go(site / "index.html")
    assert not _header(page, "compression").is_visible()
    page.click("[data-menu=columns] summary")
    page.check("[data-menu=columns] input[value=compression]")
    assert _header(page, "compression").is_visible()
    assert "1.18x" in _column(page, "compression")
    page.uncheck("[data-menu=columns] input[value=error]")
    assert not _header(page, "error").is_visible()
    page.click("[data-menu=task] summary")
    page.uncheck("[data-menu=task] input[value=almanac_facts]")
    page.check("[data-menu=task] input[value=almanac_facts_rare]")
    assert not _header(page, "almanac_facts").is_visible()
    assert _header(page, "almanac_facts_rare").is_visible()


def test_a_view_stands_in_its_address(site: Path, visit: Any) -> None:
    seen = visit()
    page = seen.go(site / "index.html")
    _header(page, "error").locator("button").click()
    page.fill("#find", "svd")
    page.click("[data-menu=columns] summary")
    page.uncheck("[data-menu=columns] input[value=keep]")
    address = page.url
    assert "sort=error" in address
    other = seen.go(address)
    assert _header(other, "error").get_attribute("aria-sort") == "ascending"
    assert set(_column(other, "method")) == {"svd", "laser-svd"}
    assert not _header(other, "keep").is_visible()


def test_everything_can_be_done_with_the_keyboard(site: Path, visit: Any) -> None:
    page = visit().go(site / "index.html")

    def focused() -> str:
        return page.evaluate("document.activeElement.textContent.trim()")

    page.keyboard.press("Tab")
    assert focused() == "Skip to the content"
    assert page.locator(".skip").bounding_box()["y"] >= 0
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "find"
    for _ in range(2):
        page.keyboard.press("Tab")
    assert focused().startswith("Methods")
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"
    page.keyboard.press("Enter")
    assert page.locator("[data-menu=method]").get_attribute("open") is not None
    for _ in range(3):
        page.keyboard.press("Tab")
    page.keyboard.press("Space")
    assert page.locator("[data-menu=method] input").first.is_checked() is False
    page.keyboard.press("Escape")
    assert page.locator("[data-menu=method]").get_attribute("open") is None
    assert focused().startswith("Methods")
    _header(page, "error").locator("button").focus()
    page.keyboard.press("Enter")
    assert _header(page, "error").get_attribute("aria-sort") == "ascending"


def test_the_header_and_the_baseline_stay_in_sight(site: Path, visit: Any) -> None:
    page = visit(viewport={"width": 900, "height": 420}).go(site / "index.html")
    tops = page.evaluate(
        """() => {
            const box = document.querySelectorAll('.model .scroll:has(.board)')[1];
            box.scrollTop = 300; box.scrollLeft = 200;
            const at = (selector) => box.querySelector(selector).getBoundingClientRect();
            const frame = box.getBoundingClientRect();
            return {frame: frame.top, left: frame.left, head: at('thead th').top, foot: at('thead th').bottom,
                    pinned: at('.pinned th').top, first: at('.rows th').left};
        }"""
    )
    assert abs(tops["head"] - tops["frame"]) < 2
    assert abs(tops["pinned"] - tops["foot"]) < 2
    assert abs(tops["first"] - tops["left"]) < 2


def test_hostile_names_are_shown_as_they_are(site: Path, visit: Any) -> None:
    page = visit().go(site / "index.html")
    assert page.locator("section.model:nth-of-type(3) h2").inner_text() == MODEL
    shown = set(_column(page, "method", "section.model:nth-of-type(3)"))
    assert {"javascript:alert(1)", '"><img src=x onerror=alert(1)>', "{{ 7*7 }}", "n" * 300, "red"} <= shown
    assert len(shown) == len(HOSTILE)
    page.click("[data-menu=method] summary")
    page.locator("[data-menu=method] label", has_text="onerror").locator("input").uncheck()
    assert '"><img src=x onerror=alert(1)>' not in _column(page, "method", "section.model:nth-of-type(3)")
    page.locator("section.model:nth-of-type(3) .rows th a").first.click()
    assert page.locator("h1").inner_text().startswith("javascript:alert(1)")
    assert page.evaluate("document.images.length") == 0


def test_figures_are_alive_and_take_the_colours_that_are_chosen(site: Path, visit: Any) -> None:
    page = visit(color_scheme="light").go(site / "figures.html")
    page.wait_for_selector(".live svg")
    first = page.locator("figure.chart").first
    assert not first.locator("img.still").is_visible()
    ink = "document.querySelector('.live svg text').getAttribute('fill')"
    light = page.evaluate(ink)
    page.click("#theme")
    page.click("#theme")
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    _until(page, f"{ink} !== '{light}'")
    page.locator("figure.chart").last.scroll_into_view_if_needed()
    _until(page, "Boolean([...document.querySelectorAll('figure.chart')].at(-1).querySelector('.live svg'))")
    page.click("nav >> text=Leaderboard")
    _until(page, "location.pathname.endsWith('index.html') && document.documentElement.dataset.theme === 'dark'")


def test_a_mark_tells_its_numbers(site: Path, visit: Any) -> None:
    page = visit().go(site / "figures.html")
    page.wait_for_selector(".live svg .mark-symbol path")
    page.locator(".live svg .mark-group .mark-symbol path[aria-roledescription=point]").first.hover(force=True)
    page.wait_for_selector("#vg-tooltip-element.visible")
    words = page.inner_text("#vg-tooltip-element")
    assert "method" in words
    assert "keep" in words


def test_without_scripts_it_is_a_table_and_pictures(site: Path, visit: Any) -> None:
    seen = visit(java_script_enabled=False)
    page = seen.go(site / "index.html")
    assert not page.locator("#controls").is_visible()
    assert not page.locator("#theme").is_visible()
    assert page.locator("section.model:nth-of-type(2) .rows > tr:visible").count() == 18
    page = seen.go(site / "figures.html")
    assert page.locator("img.still").first.is_visible()


@pytest.mark.parametrize("name", ["index", "figures", "spectrum", "damage", "runs", "downloads"])
def test_a_phone_shows_every_page_without_scrolling_it_sideways(site: Path, visit: Any, name: str) -> None:
    page = visit(viewport={"width": 390, "height": 844}).go(site / f"{name}.html")
    page.wait_for_timeout(200)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_the_page_on_damage_draws_its_figures_and_has_a_table_for_each_outcome(site: Path, visit: Any) -> None:
    page = visit().go(site / "damage.html")
    for place in range(page.locator("figure.chart").count()):
        figure = page.locator("figure.chart").nth(place)
        figure.scroll_into_view_if_needed()
        figure.locator(".live svg").wait_for()
    tables = page.locator("table.correlations")
    assert tables.count() >= 4
    assert re.fullmatch(r"[+−]?\d\.\d\d( (†|—|\[.*\]))?|—", tables.first.locator("td").nth(2).inner_text())
    figure = page.locator("figure.chart").first
    figure.scroll_into_view_if_needed()
    figure.locator(".mark-symbol path[aria-roledescription=point]").first.hover(force=True)
    page.wait_for_selector("#vg-tooltip-element.visible")
    assert "rho" in page.inner_text("#vg-tooltip-element")


def test_rows_are_filtered_by_mode(site: Path, visit: Any) -> None:
    page = visit().go(site / "index.html")
    page.click("[data-menu=mode] summary")
    page.uncheck("[data-menu=mode] input[value=each]")
    assert page.locator("section.model:nth-of-type(1) .rows > tr:visible").count() == 0
    assert len(_column(page, "method")) == 18
    assert "mode=each" in page.url


def test_what_a_choice_was_made_on_is_folded_and_sorts_with_the_rest(
    visit: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    demo_run(tmp_path / "run", failures=False)
    select_by_cell(monkeypatch)
    assert main(["publish", str(tmp_path / "run"), "--to", str(tmp_path / "site")]) == 0
    page = visit().go(tmp_path / "site" / "index.html")
    folded = page.locator("section.choice .board")
    assert not folded.is_visible()
    page.click("section.choice summary")
    assert folded.is_visible()
    assert folded.locator(".rows > tr").count() == 6
    folded.locator("thead th[data-c=error] button").click()
    assert folded.locator("th[aria-sort=ascending]").count() == 1
    assert page.locator("th[aria-sort=ascending]").count() == 2
    overlap = page.evaluate(
        "() => { const t = document.querySelector('section.choice .board'); "
        "return t.tHead.getBoundingClientRect().bottom - t.querySelector('.pinned').getBoundingClientRect().top; }"
    )
    assert overlap < 2


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["index", "damage"])
def test_words_stand_out_from_their_ground(site: Path, visit: Any, scheme: str, name: str) -> None:
    """WCAG AA: 4.5:1."""
    page = visit(color_scheme=scheme).go(site / f"{name}.html")
    found = page.evaluate(
        """() => {
            const parse = (text) => text.match(/[\\d.]+/g).map(Number);
            const light = (rgb) => rgb.slice(0, 3).map(v => v / 255)
                .map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
                .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
            const ground = (e) => { for (; e; e = e.parentElement) {
                const c = parse(getComputedStyle(e).backgroundColor);
                if (c.length === 3 || c[3] === 1) return c; } return [255, 255, 255]; };
            const worst = {};
            for (const e of document.querySelectorAll('body *')) {
                if (![...e.childNodes].some(n => n.nodeType === 3 && n.data.trim()) || !e.checkVisibility()) continue;
                const [a, b] = [light(parse(getComputedStyle(e).color)), light(ground(e))].sort((x, y) => y - x);
                const ratio = (a + .05) / (b + .05);
                if (ratio < 4.5) worst[`${e.tagName}.${e.className}`] = ratio;
            }
            return worst;
        }"""
    )
    assert found == {}


def test_on_paper_there_are_no_controls_and_no_dark_ground(site: Path, visit: Any) -> None:
    page = visit(color_scheme="dark").go(site / "index.html")
    page.emulate_media(media="print", color_scheme="dark")
    assert not page.locator("#controls").is_visible()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    page = visit(color_scheme="dark").go(site / "figures.html")
    page.wait_for_selector(".live svg")
    page.emulate_media(media="print", color_scheme="dark")
    assert page.locator("img.still").first.is_visible()
    assert not page.locator(".live").first.is_visible()
