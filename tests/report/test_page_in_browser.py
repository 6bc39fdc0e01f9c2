"""The page in a real browser: `make report-browser`. Skipped by name where Chromium or Playwright is missing."""

import json
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from fedelta.report.comparison import Cell, Comparison, Tuned
from fedelta.report.page import page
from fedelta.report.study import Run

playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed: make report-browser")

CHROMIUM = next((found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this system")

Study = Callable[..., list[Run]]
Make = Callable[..., Comparison]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM)
        yield browser
        browser.close()


@pytest.fixture
def show(browser: Any, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Opens a page of some runs or of a suite; options are those of a browser's context."""
    contexts: list[Any] = []

    def open_page(runs: list[Run] | Comparison, *, width: int = 1280, **options: Any) -> Any:
        file = tmp_path / "report.html"
        file.write_text(page(runs), encoding="utf-8")
        context = browser.new_context(viewport={"width": width, "height": 900}, **options)
        contexts.append(context)
        shown = context.new_page()
        shown.faults = []
        shown.on("console", lambda message: shown.faults.append(message.text))
        shown.on("pageerror", lambda error: shown.faults.append(str(error)))
        shown.on("request", lambda request: shown.faults.append(request.url) if request.url != file.as_uri() else None)
        shown.goto(file.as_uri())
        return shown

    yield open_page
    for context in contexts:
        context.close()


def states(a_study: Study) -> dict[str, list[Run]]:
    """Every state that a page has."""
    long = "a very long name of a method that has just about sixty letter"
    broken = a_study()
    broken[0].records[-1].update(train_loss=None, test={"accuracy": None, "loss": None})  # pyright: ignore
    graph = {"consensus_product_relative": 0.3, "cross_term_norm": 0.1}
    return {
        "several seeds": a_study(("flexlora", "raflora", "hetlora", "ffa_lora")),
        "five seeds": a_study(seeds=5),
        "one run": a_study(("flexlora",), seeds=1),
        "one seed": a_study(seeds=1),
        "one round": a_study(rounds=1),
        "twelve methods": a_study([*"abcdefghijk", "local_only"]),
        "diverged": broken,
        "unfinished": [replace(run, records=run.records[: 4 - i % 2]) for i, run in enumerate(a_study())],
        "no validation": a_study(validation=None),
        "no scores": a_study(test=None, validation=None, clients=None),
        "withheld": [replace(run, clients=None, split=None) for run in a_study()],
        "no client tests": a_study(clients=None),
        "two seeds": a_study(seeds=2),
        "equal ranks": a_study(diagnostics=lambda r: {**r["diagnostics"], "energy_by_band": None, "spectrum": [0.6, 0.3, 0.1]}),
        "stages and memory": a_study(seconds={"train": 2.0, "aggregate": 1.0, "save": 0.1}, memory={"peak": 2**30}),
        "perplexity": a_study(
            test=lambda r: {"perplexity": 20 * r["train_loss"]}, validation=lambda r: {"perplexity": 21 * r["train_loss"]}
        ),
        "graph": a_study(topology={}, diagnostics=lambda r: {**r["diagnostics"], **graph}),
        "names": a_study(("<b>\"&'</b>", long, "\u0634\u0628\u0643\u0629", "<script>alert(1)</script>")),
    }


def suites(a_comparison: Make) -> dict[str, Comparison]:
    """Every state that only a suite has."""
    lines = ("a", "b", "local_only", "centralised")
    refused = [("harsh", "b", "not applicable", "b needs a server, and this setting has <none>")]
    whole = a_comparison(lines, text="base: quickstart\n" * 20, untrained={"": {"test": {"accuracy": 0.4}}})
    failed = [Cell("", "b", 2, "failed", None, "CUDA out of memory"), *whole.cells[1:]]
    tuned = {("", "a"): Tuned({"training.learning_rate": 0.01}, {}, True)}
    return {
        "lines": replace(whole, tuned=tuned),
        "failed": replace(whole, cells=[*whole.cells[:5], failed[0], *whole.cells[6:]]),
        "two settings": a_comparison(("a", "b"), ("mild", "harsh"), without=refused),
        "three settings": a_comparison([*"abcdefg", "local_only", "centralised"], ("x", "y", "z"), seeds=5),
        "six settings": a_comparison(("a", "b", "c"), [f"a setting of quite a long name {k}" for k in range(6)]),
        "named baseline": a_comparison(("a", "b", "c"), named=True),
        "begun": a_comparison(("a", "b"), without=[("", "b", "missing", "")]),
    }


def test_every_state_is_drawn_without_a_message_a_request_or_a_scroll(
    a_study: Study, a_comparison: Make, show: Callable[..., Any]
):
    for name, runs in {**states(a_study), **suites(a_comparison)}.items():
        for width in (1280, 390, 320):
            shown = show(runs, width=width)
            assert not shown.faults, (name, width)
            sizes = shown.evaluate("[document.documentElement.scrollWidth, innerWidth]")
            assert sizes[0] == sizes[1], (name, width)
            assert shown.evaluate(OUTSIDE) == [], (name, width)
            assert shown.evaluate(EMPTY) == [], (name, width)
            shown.context.close()


EMPTY = """[...document.querySelectorAll('figure')].filter(f => {
  const marks = [...f.querySelectorAll('path.ln, path.mk, rect, td, circle, path.b0')];
  return !marks.some(m => { const b = m.getBoundingClientRect(); return b.width > 0 && b.height >= 0 });
}).map(f => f.querySelector('b').textContent)"""
"""Figures in which nothing is drawn."""

OUTSIDE = """[...document.querySelectorAll('figure, .fc')].flatMap(f => {
  const card = f.getBoundingClientRect();
  return [...f.querySelectorAll('svg text, svg path.ln, svg rect:not(.tb), svg circle')]
    .filter(m => !m.closest('.tip'))
    .map(m => [m, m.getBoundingClientRect()])
    .filter(([m, b]) => b.width && (b.left < card.left - 1 || b.right > card.right + 1))
    .map(([m, b]) => `${m.tagName}.${m.getAttribute('class')} ${m.textContent} ${b.left - card.left} ${b.right - card.right}`);
})"""
"""Marks that stick out of their card."""


def test_without_script_it_is_the_same_picture(a_study: Study, show: Callable[..., Any]):
    pictures = [show(a_study(), java_script_enabled=on).screenshot(full_page=True) for on in (True, False)]
    assert pictures[0] == pictures[1]


def test_no_script_of_a_name_ever_runs(a_study: Study, show: Callable[..., Any]):
    shown = show(a_study(("<script>document.title='run'</script>", '"><img src=x onerror="document.title=\'run\'">')))
    assert shown.title() == "2 methods, 3 seeds · fedelta report"
    assert not shown.faults


VISIBLE = "e => [...document.querySelectorAll('[data-m]')].map(x => [x.dataset.m, x.getClientRects().length > 0])"


RAGGED = """[...document.querySelectorAll('.heat, .data')].filter(t => t.getClientRects().length).flatMap(t => {
  const seen = row => [...row.cells].filter(c => c.getClientRects().length).length;
  const rows = [...t.rows].filter(r => r.getClientRects().length);
  return rows.filter(r => seen(r) !== seen(rows[0])).map(r => r.textContent);
})"""
LEFT_OVER = """name => [...document.querySelectorAll('main text, main th, main td, main .panel')]
  .filter(e => e.getClientRects().length && e.textContent.trim() === name).map(e => e.outerHTML)"""
"""Texts that are a method's name and nothing else."""


def test_a_chip_hides_its_method_everywhere_and_nothing_else(a_study: Study, show: Callable[..., Any]):
    shown = show(a_study(("a", "b", "c")))
    before = shown.evaluate(VISIBLE)
    assert {key for key, seen in before if seen} == {"m0", "m1", "m2"}
    places = "[...document.querySelectorAll('[data-m=m1]')].map(x => x.closest('figure, section').id || x.tagName)"
    assert len(set(shown.evaluate(places))) > 1
    chip = shown.locator("#m1")
    chip.uncheck()
    hidden = shown.evaluate(VISIBLE)
    assert not [1 for key, seen in hidden if key == "m1" and seen]
    assert [x for x in hidden if x[0] != "m1"] == [x for x in before if x[0] != "m1"]
    assert shown.evaluate(RAGGED) == [], "columns go with their heads"
    assert shown.evaluate(LEFT_OVER, "b") == []
    chip.focus()
    shown.keyboard.press("Space")
    assert shown.evaluate(VISIBLE) == before


def test_a_chip_hides_its_method_in_every_setting(a_comparison: Make, show: Callable[..., Any]):
    refused = [("y", "c", "not applicable", "no server")]
    shown = show(a_comparison([*"abcdefg"], ("x", "y", "z"), without=refused))
    shown.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    before = shown.evaluate(VISIBLE)
    for key, name in (("m1", "b"), ("m2", "c")):
        shown.locator(f"#{key}").uncheck()
        hidden = shown.evaluate(VISIBLE)
        assert not [1 for found, seen in hidden if found == key and seen]
        assert [x for x in hidden if x[0] != key] == [x for x in before if x[0] != key]
        assert shown.evaluate(LEFT_OVER, name) == []
        shown.locator(f"#{key}").check()
    assert shown.evaluate(VISIBLE) == before


def test_the_table_of_a_browser_has_the_numbers_of_the_summary(a_comparison: Make, show: Callable[..., Any]):
    shown = show(a_comparison(("a", "b", "c"), seeds=5))
    data = json.loads(shown.locator("#summary").text_content())
    for method in data["settings"][""]["methods"]:
        row = shown.locator(f"#wins tr[data-m=m{'abc'.index(method['label'])}]")
        assert row.locator("td b").first.text_content() == f"{100 * method['mean']:.1f}"
        if method["difference"] is not None:
            low, high = method["interval"]
            written = f"{100 * method['difference']:+.1f}{100 * low:+.1f} to {100 * high:+.1f}".replace("-", "\u2212")
            assert row.locator("td").nth(1).text_content() == written


def test_a_page_can_be_read_by_keyboard_and_by_ear(a_comparison: Make, show: Callable[..., Any]):
    shown = show(a_comparison(("a", "b"), ("x", "y", "z")))
    levels = shown.evaluate("[...document.querySelectorAll('h1, h2, h3')].map(h => +h.tagName[1])")
    assert levels[0] == 1
    assert all(later - earlier <= 1 for earlier, later in pairwise(levels[1:])), "no level of heading is left out"
    assert shown.evaluate("[...document.querySelectorAll('figure svg[role=img]')].every(s => s.getAttribute('aria-label'))")
    assert shown.evaluate("[...document.querySelectorAll('th')].every(h => h.scope || h.closest('.heat'))")
    reached: set[str] = set()
    for _ in range(8):
        shown.keyboard.press("Tab")
        reached.add(shown.evaluate("document.activeElement.id"))
        assert shown.evaluate(FOCUS), "what has the focus is seen to have it"
    assert {"m0", "m1", "auto"} <= reached


FOCUS = """(() => { const e = document.activeElement; const box = e.closest('label') || e;
  const outline = x => getComputedStyle(x).outlineStyle;
  return outline(box) !== 'none' || outline(e) !== 'none' })()"""


def test_a_tip_has_the_numbers_of_the_table_and_lies_in_its_card(a_study: Study, show: Callable[..., Any]):
    for width in (1280, 390):
        shown = show(a_study(("a", "b", "a method of a long name"), rounds=6), width=width)
        size = "wide" if width > 760 else "narrow"
        for number in range(shown.locator("figure:has(.hit)").count()):
            figure = shown.locator("figure:has(.hit)").nth(number)
            hits = figure.locator(f".{size} .hit")
            table = table_of(figure)
            for hit in (hits.first, hits.last):
                hit.locator(".hr").hover()
                tip = hit.locator(".tip")
                assert tip.evaluate("t => getComputedStyle(t).visibility") == "visible"
                card, box = figure.bounding_box(), tip.locator(".tb").bounding_box()
                assert card["x"] <= box["x"]
                assert box["x"] + box["width"] <= card["x"] + card["width"]
                head, *values = tip.locator("text").all_text_contents()
                found = dict(reversed(re.split(r"\s{2,}", value)) for value in values)
                assert sorted(found) == sorted(x for x in table[head] if x != "–")


def table_of(figure: Any) -> dict[str, list[str]]:
    """The rows of the data table under a chart, by their head."""
    rows = figure.locator("details tbody tr").evaluate_all("rows => rows.map(r => [...r.cells].map(c => c.textContent))")
    return {head: cells for head, *cells in rows}


def test_the_theme_follows_the_system_until_one_is_chosen(a_study: Study, show: Callable[..., Any]):
    background = "getComputedStyle(document.body).backgroundColor"
    for scheme, other in (("light", "dark"), ("dark", "light")):
        shown = show(a_study(), color_scheme=scheme)
        own = shown.evaluate(background)
        shown.locator(f"#{other}").check()
        chosen = shown.evaluate(background)
        assert chosen != own
        shown.locator(f"#{scheme}").check()
        assert shown.evaluate(background) == own
    assert own == "rgb(17, 20, 23)"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_and_marks_stand_out(scheme: str, a_study: Study, a_comparison: Make, show: Callable[..., Any]):
    for runs in (a_study([*"abcdef", "local_only"]), suites(a_comparison)["failed"], suites(a_comparison)["two settings"]):
        shown = show(runs, color_scheme=scheme)
        shown.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
        assert shown.evaluate(FAINT, 4.5) == []
        assert shown.evaluate(FAINT_MARKS, 3.0) == []


COLOURS = """
const channels = c => c.match(/[\\d.]+/g).map(Number);
const light = c => { const [r, g, b] = channels(c).map(v => (v /= 255) <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
  return .2126 * r + .7152 * g + .0722 * b };
const ratio = (a, b) => { const [x, y] = [light(a), light(b)]; return (Math.max(x, y) + .05) / (Math.min(x, y) + .05) };
const behind = e => { for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor;
  if (e.namespaceURI.endsWith('xhtml') && channels(c)[3] !== 0) return c } return 'rgb(255, 255, 255)' };
const seen = e => e.getClientRects().length > 0;
"""
FAINT = f"""least => {{ {COLOURS}
  const own = e => [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
  return [...document.querySelectorAll('body *')].filter(e => seen(e) && own(e) && !['STYLE', 'title'].includes(e.tagName))
    .map(e => [e.textContent.slice(0, 30), ratio(getComputedStyle(e)[e.tagName === 'text' ? 'fill' : 'color'], behind(e))])
    .filter(([, r]) => r < least) }}"""
FAINT_MARKS = f"""least => {{ {COLOURS}
  return [...document.querySelectorAll('path.ln, path.mk')].filter(seen)
    .map(e => [e.outerHTML.slice(0, 60), ratio(getComputedStyle(e)[e.matches('.ln') ? 'stroke' : 'fill'], behind(e))])
    .filter(([, r]) => r < least) }}"""


@pytest.mark.parametrize(("width", "least"), [(1280, 10), (390, 10), (320, 8)])
def test_no_text_is_tiny_and_no_labels_overlap(
    width: int, least: float, a_study: Study, a_comparison: Make, show: Callable[..., Any]
):
    for runs in (a_study([*"abcde"]), suites(a_comparison)["three settings"], suites(a_comparison)["lines"]):
        shown = show(runs, width=width)
        assert shown.evaluate(TINY, least) == []
        assert shown.evaluate(OVERLAPPING) == []


TINY = """least => [...document.querySelectorAll('svg text')].filter(t => t.getClientRects().length)
  .map(t => [t.textContent, parseFloat(getComputedStyle(t).fontSize) * t.getScreenCTM().a]).filter(([, s]) => s < least)"""
OVERLAPPING = """[...document.querySelectorAll('figure svg')].filter(s => s.getClientRects().length).flatMap(s => {
  const labels = [...s.querySelectorAll('g > text.dl')].map(t => [t.textContent, t.getBBox()]);
  return labels.flatMap(([a, p], i) => labels.slice(i + 1).filter(([b, q]) =>
    p.x < q.x + q.width && q.x < p.x + p.width && p.y + 2 < q.y + q.height && q.y + 2 < p.y + p.height).map(([b]) => [a, b]));
})"""


CUT = """[...document.querySelectorAll('.scroll')].filter(s => s.getClientRects().length && s.scrollWidth > s.clientWidth + 1)
  .map(s => [s.textContent.slice(0, 40), s.scrollWidth, s.clientWidth])"""
"""Tables that are wider than their place."""


def test_print_is_light_and_whole(a_study: Study, show: Callable[..., Any], tmp_path: Path):
    shown = show(a_study(), color_scheme="dark")
    shown.locator("#dark").check()
    shown.emulate_media(media="print")
    assert shown.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert shown.evaluate("getComputedStyle(document.querySelector('figure')).backgroundColor") == "rgb(255, 255, 255)"
    gone = "['.top', '.toc', '.tip'].map(s => getComputedStyle(document.querySelector(s)).display)"
    assert shown.evaluate(gone) == ["none"] * 3
    shown.set_viewport_size({"width": 703, "height": 1000})  # A4 less its margins
    assert shown.evaluate(CUT) == []
    assert shown.locator("section > details table").first.is_visible(), "what is folded on a screen is open on paper"
    printed = shown.pdf(path=str(tmp_path / "page.pdf"), format="A4", print_background=True, prefer_css_page_size=True)
    assert printed.startswith(b"%PDF")
    assert 2 <= len(re.findall(rb"/Type\s*/Page\b", printed)) <= 10


def test_a_suite_prints_whole(a_comparison: Make, show: Callable[..., Any], tmp_path: Path):
    shown = show(suites(a_comparison)["three settings"])
    shown.emulate_media(media="print")
    shown.set_viewport_size({"width": 703, "height": 1000})
    assert shown.evaluate(CUT) == []
    opened = shown.locator("#settings > details").first
    assert opened.locator("table.lead").is_visible(), "tables of the other settings are open on paper"
    shown.pdf(path=str(tmp_path / "page.pdf"), format="A4", print_background=True, prefer_css_page_size=True)
