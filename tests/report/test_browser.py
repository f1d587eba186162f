"""The page in a real browser: it runs from disk alone, answers the pointer, and runs no one's text.

Needs a Chromium and the package playwright; `pytest -s` prints what was checked.
"""

from __future__ import annotations

import csv
import re
import shutil
import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from moeprof.cache import Scope
from moeprof.model import MoEModel
from moeprof.report import ReportContents, gather_report, render_html
from moeprof.report.wording import percent
from moeprof.trace import Trace, synthesize_rows
from tests.report.conftest import ODD

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: '.[dev]'")
OWN = ("data:", "blob:")  # what the page holds itself
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
CHROMIUM = next((found for name in NAMES if (found := shutil.which(name))), None)
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine"),
]

# The event of a scroll comes with the next frame, and hides the tooltip.
SCROLLED = "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"
WIDE, NARROW = (1280, 900), (360, 740)
NOT_NUMBERS = ("NaN", "undefined", "null", "Infinity")
ATTACKS = (
    "<script>pwned(1)</script>",
    '"><img src=x onerror=pwned(2)>',
    "javascript:pwned(3)",
    "' onmouseover='pwned(4)' x='",
    "</script><script>pwned(5)</script>",
    "</style>{{7*7}}<svg/onload=pwned(6)>",
)


@dataclass
class Visit:
    """A page that was opened, and everything it did that a report must not do."""

    page: Any
    path: Path
    contents: ReportContents
    requests: list[str] = field(default_factory=list)  # but for what the page holds itself
    complaints: list[str] = field(default_factory=list)  # errors, warnings, dialogs, new pages

    def check(self) -> None:
        assert self.requests == [self.path.as_uri()]
        assert self.complaints == []
        assert self.page.evaluate("window.attacks") == []

    def tip(self) -> str:
        """What the tooltip says; '' while it is hidden."""
        tip = self.page.locator("#tip")
        return str(tip.inner_text()) if tip.is_visible() else ""

    def point(self, selector: str, x: float = 0.5, y: float = 0.5, nth: int = 0) -> str:
        """Move the pointer to a place of an element, and read the tooltip."""
        element = self.page.locator(selector).nth(nth)
        element.scroll_into_view_if_needed()
        self.page.evaluate(SCROLLED)
        box = element.bounding_box()
        self.page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"])
        return self.tip()

    def spoken(self) -> str:
        """What a screen reader is told, with plain spaces."""
        return self.tip().replace("\u00a0", " ")

    def saved(self, button: Any) -> list[list[str]]:
        """The rows of the CSV that a button gives."""
        with self.page.expect_download() as download:
            button.click()
        text = Path(download.value.path()).read_text(encoding="utf-8-sig")
        return list(csv.reader(text.splitlines()))

    def focus(self, element: Any) -> None:
        """As the keyboard would, and wait until the page has scrolled there."""
        element.focus()
        self.page.evaluate(SCROLLED)

    def unfold(self) -> None:
        """Open every folded table with a click."""
        folded = self.page.locator("details:not([open]) > summary")
        folded.evaluate_all("all => all.forEach(summary => summary.click())")

    def overflow(self) -> float:
        """By how many pixels the page is wider than its window."""
        return float(self.page.evaluate("document.documentElement.scrollWidth - innerWidth"))


Visitor = Callable[..., Visit]


@pytest.fixture(scope="module")
def say() -> Iterator[Callable[[str], None]]:
    """Takes one line of the transcript, which is written at the end."""
    lines: list[str] = []
    yield lines.append
    sys.stdout.write("\n" + "\n".join(["report page in a browser:", *lines]) + "\n")


@pytest.fixture(scope="module")
def browser(say: Callable[[str], None]) -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        # A container has neither a sandbox for root nor much shared memory.
        flags = ["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"]
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=flags)
        say(f"  Chromium {browser.version}, headless, page opened from disk (file://)")
        yield browser
        browser.close()


@pytest.fixture
def visit(browser: Any, tmp_path: Path) -> Iterator[Visitor]:
    """Opens the page of a recording; at the end, checks that it did nothing it must not."""
    visits: list[Visit] = []

    def open_page(contents: ReportContents, size: tuple[int, int] = WIDE, **options: Any) -> Visit:
        path = tmp_path / f"report #{len(visits)} & <b>.html"
        path.write_text(render_html(contents), encoding="utf-8")
        viewport = {"width": size[0], "height": size[1]}
        page = browser.new_context(viewport=viewport, **options).new_page()
        page.set_default_timeout(5000)
        visits.append(Visit(page, path, contents))
        _watch(visits[-1])
        page.goto(path.as_uri())
        return visits[-1]

    yield open_page
    for seen in visits:
        seen.check()
        seen.page.context.close()


def _watch(visit: Visit) -> None:
    """Note what goes over any wire, and all that a page says or opens."""
    page, complaints = visit.page, visit.complaints
    page.context.on(
        "request",
        lambda r: None if r.url.startswith(OWN) else visit.requests.append(r.url),
    )
    page.on("websocket", lambda socket: visit.requests.append(socket.url))
    page.on("console", lambda message: complaints.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: complaints.append(f"exception: {error}"))
    page.on("popup", lambda other: complaints.append(f"opened {other.url}"))
    page.on("dialog", lambda dialog: (complaints.append(dialog.message), dialog.dismiss()))
    page.add_init_script("window.attacks = []; window.pwned = (n) => window.attacks.push(n);")


@pytest.fixture(scope="module")
def hostile(model: MoEModel) -> ReportContents:
    """Every text that a user supplies tries to run."""
    rows, requests = synthesize_rows(model, 600, requests=6, labels=ATTACKS)
    trace = Trace.in_memory(model, rows, requests)
    trace.manifest.engine = ATTACKS[1]
    trace.manifest.dropped = {attack: 7 for attack in ATTACKS}
    trace.problems = ATTACKS
    return gather_report(trace, command=f"moeprof report {' '.join(ATTACKS)}")


def test_opens_from_disk_in_silence(
    visit: Visitor, contents: ReportContents, say: Callable[[str], None]
) -> None:
    seen = visit(contents)
    assert seen.page.title().endswith("moeprof")
    assert seen.page.locator("section").count() >= 5
    for name in seen.page.locator("nav a").all_inner_texts():
        seen.page.locator("nav a", has_text=name).first.click()
        target = seen.page.evaluate("location.hash")
        assert seen.page.locator(target).bounding_box()["y"] < WIDE[1]
    seen.check()
    size = seen.path.stat().st_size
    say(f"  opened ({size:,} bytes): 1 request, the file itself; no console message, no error")


def test_the_pointer_reads_the_heatmap(
    visit: Visitor, contents: ReportContents, say: Callable[[str], None]
) -> None:
    seen = visit(contents)
    assert contents.load is not None
    layers, experts = contents.load.load.shape
    assert seen.tip() == ""
    for row, expert in ((0, 0), (1, 7), (layers - 1, experts - 1)):
        tip = seen.point(".heat", (expert + 0.5) / experts, (row + 0.5) / layers)
        load = contents.load.load[row, expert]
        head = f"layer {contents.load.per_layer[row].layer}, expert {expert}\n{load:,} assignments"
        assert tip.startswith(head)
        assert f"{load / contents.load.load[row].mean():.2f}" in tip
        assert seen.page.locator(".heat .cell").is_visible()
    seen.page.mouse.move(5, 5)
    assert seen.tip() == "" and not seen.page.locator(".heat .cell").is_visible()
    say(f"  hover over the heatmap of {layers} x {experts} gives the numbers of analyze_load")


def test_the_choice_of_tokens_changes_the_picture(
    visit: Visitor, contents: ReportContents, say: Callable[[str], None]
) -> None:
    seen = visit(contents)
    buttons = seen.page.locator("#heat .views button")
    assert buttons.all_inner_texts() == list(contents.views)
    pictures = set()
    for name, load in contents.views.items():
        button = buttons.get_by_text(name, exact=True)
        button.click()
        assert button.get_attribute("aria-pressed") == "true"
        assert seen.page.locator("#heat .views [aria-pressed=true]").count() == 1
        shown = seen.page.locator(".heat img:visible")
        assert shown.count() == 1 and name in shown.get_attribute("alt")
        assert shown.evaluate("image => image.complete && image.naturalWidth") == load.shape[1]
        pictures.add(shown.evaluate("image => image.currentSrc"))
        tip = seen.point(".heat", 3.5 / load.shape[1], 0.5 / load.shape[0])
        assert f"\n{load[0, 3]:,} assignments" in tip
    assert len(pictures) == len(contents.views)
    say(f"  {len(pictures)} choices of tokens: another picture and other numbers each")


def test_every_figure_answers_the_pointer(
    visit: Visitor, contents: ReportContents, say: Callable[[str], None]
) -> None:
    seen = visit(contents)
    figures = seen.page.locator(".plot").count()
    for nth in range(figures):
        tips = [seen.point(".plot", x, nth=nth) for x in (0.1, 0.9)]
        assert all(tips) and tips[0] != tips[1]
        assert not any(word in "".join(tips) for word in NOT_NUMBERS)
        assert seen.page.locator(".plot .cursor").nth(nth).is_visible()
    words = seen.page.locator("[data-tip]").evaluate_all("all => all.map(one => one.dataset.tip)")
    assert all(words) and not any(word in "".join(words) for word in NOT_NUMBERS)
    assert seen.point(".room[data-tip]").startswith("room for KV: ")
    parts = len(words)
    assert figures >= 2 and parts >= 3
    say(f"  hover: {figures} curves and {parts} parts of bars each give a tooltip, none says NaN")


def test_a_chart_is_read_by_keyboard_and_toggled_by_its_legend(
    visit: Visitor, contents: ReportContents, say: Callable[[str], None]
) -> None:
    seen = visit(contents)
    figure, replays = seen.page.locator("#policies-layer"), contents.policies[Scope.LAYER]
    chart = figure.locator(".plot")
    seen.focus(chart)
    for _ in range(2):
        seen.page.keyboard.press("ArrowRight")
    first = replays.rows[0]
    assert f"lru: {percent(first.hit_ratio)}, {first.slots} slots" in seen.spoken()
    button = figure.get_by_role("button", name="belady-bypass")
    lines = chart.locator("svg g[aria-label=line] path").count()
    button.focus()
    seen.page.keyboard.press("Enter")
    assert button.get_attribute("aria-pressed") == "false"
    assert chart.locator("svg g[aria-label=line] path").count() == lines - 1
    seen.focus(chart)
    seen.page.keyboard.press("End")
    assert "static" in seen.spoken() and "belady" not in seen.spoken()
    seen.page.keyboard.press("Escape")
    assert seen.tip() == ""
    say("  by keyboard: arrows read a chart, Enter on its legend hides a series")


def test_a_logarithmic_axis_names_its_ticks(visit: Visitor, contents: ReportContents) -> None:
    words = visit(contents).page.locator("#load-tpot svg g[aria-label='x-axis tick label'] text")
    assert contents.projection
    most = contents.projection.load[-1].concurrency
    expected = [f"{2**power}" for power in range(12) if 2**power <= most]
    assert words.all_text_contents() == expected


def test_a_batch_is_picked_from_a_list(visit: Visitor, contents: ReportContents) -> None:
    seen, locality = visit(contents), contents.locality
    assert locality
    figure = seen.page.locator("#locality-batch")
    for batch in ("2", "4096"):
        figure.get_by_role("combobox").select_option(batch)
        said = figure.locator("output").inner_text().replace("\u00a0", " ")
        assert said.startswith(f"tokens in a step {int(batch):,}\n")
        even = locality.distinct_uniform[int(batch)]
        assert re.search(rf"even router.*: {even:.3g} experts", said)
        assert ("drawn again" in said) == (int(batch) in locality.distinct_resampled)


def test_a_layer_opens_as_bars(
    visit: Visitor, contents: ReportContents, say: Callable[[str], None]
) -> None:
    seen = visit(contents)
    heat, detail = seen.page.locator(".heat"), seen.page.locator("#heat .detail")
    seen.focus(heat)
    for key in ("ArrowDown", "ArrowDown", "ArrowRight", "Enter"):  # the first key enters the field
        seen.page.keyboard.press(key)
    assert contents.load
    layer, load = contents.load.per_layer[1].layer, contents.load.load[1]
    assert detail.locator("h3").inner_text() == (
        f"Layer {layer}, all tokens: the busiest expert is {load.argmax()}"
    )
    assert detail.locator("svg rect").count() == len(load)
    detail.get_by_role("button", name="by load").click()
    seen.focus(detail.locator(".plot"))
    seen.page.keyboard.press("Home")
    assert f"expert {load.argmax()}\nassignments: {load.max():,}" in seen.spoken()
    assert len(seen.saved(detail.get_by_role("button", name="Download"))) == 1 + 2 * len(load)
    say("  a layer of the heatmap by keyboard: its experts as bars, sorted by load, saved as CSV")


def test_figures_and_tables_give_their_data(
    visit: Visitor, contents: ReportContents, say: Callable[[str], None]
) -> None:
    seen = visit(contents)
    assert contents.load
    rows = seen.saved(seen.page.locator("#heat > .tool"))
    assert rows[0] == ["layer", "expert", *contents.views]
    assert [int(row[2]) for row in rows[1:]] == contents.load.load.ravel().tolist()
    rows = seen.saved(seen.page.locator("#imbalance-layer > .tool"))
    values = [float(row[3]) for row in rows[1:] if row[1] == "experts"]
    expected = [layer.imbalance for layer in contents.load.per_layer]
    assert values == pytest.approx(expected, rel=1e-5)
    seen.unfold()
    table = seen.page.locator("#load details")
    heading = table.get_by_role("columnheader", name="assignments")
    for order in ("ascending", "descending"):
        heading.get_by_role("button").click()
        assert heading.get_attribute("aria-sort") == order
        cells = table.locator("tbody tr td:nth-child(2)").all_inner_texts()
        counts = [int(cell.replace(",", "")) for cell in cells]
        assert counts == sorted(counts, reverse=order == "descending")
    saved = seen.saved(table.locator(".tool"))
    assert [row[1] for row in saved[1:]] == cells
    say("  CSV of the heatmap, a chart and a table hold the numbers of the results; tables sort")


def test_a_command_is_copied(visit: Visitor, contents: ReportContents) -> None:
    seen = visit(contents, permissions=["clipboard-read", "clipboard-write"])
    assert contents.advice
    button = seen.page.locator("#advice .command").get_by_role("button")
    button.click()
    seen.page.wait_for_function(
        "button => button.textContent === 'copied'", arg=button.element_handle()
    )
    copied = seen.page.evaluate("navigator.clipboard.readText()")
    assert copied == contents.advice.options[0].command


def test_the_parts_of_a_bar_are_told_to_the_keyboard(
    visit: Visitor, contents: ReportContents
) -> None:
    seen = visit(contents)
    seen.page.locator("#memory-stack .bar").first.scroll_into_view_if_needed()
    seen.page.locator("#memory-stack .tool").focus()
    seen.page.keyboard.press("Tab")
    assert "routed experts: " in seen.tip() and "room for KV: " in seen.tip()
    head, *rows = seen.saved(seen.page.locator("#memory-stack .tool"))
    assert head == ["bar", "part", "note", "verdict"]
    assert contents.deployments and len({row[0] for row in rows}) == len(contents.deployments)
    assert all(note.startswith(f"{part}: ") for _, part, note, _ in rows)


def test_a_spreadsheet_runs_no_text_of_a_user(visit: Visitor, model: MoEModel) -> None:
    rows, requests = synthesize_rows(model, 60, requests=2, labels=["=1+1", 'a "b", c'])
    seen = visit(gather_report(Trace.in_memory(model, rows, requests)))
    seen.unfold()
    labels = [row[1] for row in seen.saved(seen.page.locator("#imbalance details .tool"))]
    assert labels[-2:] == ["'=1+1", 'a "b", c']


def test_a_text_that_did_run_would_be_seen(visit: Visitor, contents: ReportContents) -> None:
    seen = visit(contents)
    seen.page.evaluate("html => document.body.insertAdjacentHTML('beforeend', html)", ATTACKS[1])
    seen.page.wait_for_function("window.attacks.length > 0")
    with pytest.raises(AssertionError):
        seen.check()
    seen.page.evaluate("window.attacks = []")
    seen.complaints.clear()
    del seen.requests[1:]


@pytest.mark.parametrize("size", [WIDE, NARROW])
def test_texts_that_try_to_run_are_shown_and_nothing_more(
    visit: Visitor, hostile: ReportContents, size: tuple[int, int], say: Callable[[str], None]
) -> None:
    seen = visit(hostile, size)
    page = seen.page
    shown = page.locator("#heat .views button").all_inner_texts()[-len(ATTACKS) :]
    assert shown == [f"label {attack}" for attack in sorted(ATTACKS)]
    for button in page.locator("#heat .views button").all():
        button.click()
        assert seen.point(".heat")
    seen.unfold()
    text = page.locator("main").inner_text()
    assert all(text.count(attack) >= 3 for attack in ATTACKS), "label, dropped, problem"
    assert "49" not in [word for word in text.split() if word.startswith("</style>")]
    assert page.locator("script").count() == 3
    assert page.locator("main :is(img[onerror], svg[onload], [onmouseover], b)").count() == 0
    links = page.locator("a").evaluate_all("links => links.map(a => a.getAttribute('href'))")
    assert all(link.startswith("#") for link in links)
    seen.check()
    assert seen.overflow() <= 0
    if size == WIDE:
        say(f"  {len(ATTACKS)} texts that try to run: no script, no dialog, shown literally:")
        say("\n".join(f"    {label}" for label in shown))


def test_a_script_in_the_page_could_not_call_home(
    visit: Visitor, contents: ReportContents, say: Callable[[str], None]
) -> None:
    """Were one to get in, the page's own policy would keep it from every address."""
    seen = visit(contents)
    with socket.create_server(("127.0.0.1", 0)) as home:
        address = f"http://127.0.0.1:{home.getsockname()[1]}/"
        for attempt in (
            "url => fetch(url, {mode: 'no-cors'}).then(() => 'sent', () => 'refused')",
            "url => new Promise(done => { const image = new Image(); image.src = url;"
            " image.onload = () => done('sent'); image.onerror = () => done('refused'); })",
        ):
            assert seen.page.evaluate(attempt, address) == "refused"
        home.settimeout(0.2)
        with pytest.raises(TimeoutError):
            home.accept()
    said, seen.complaints = seen.complaints, []
    assert said and all("Content Security Policy" in line for line in said)
    del seen.requests[1:]  # what was refused is listed as well
    say("  fetch() and new Image() from inside: refused by the page's policy, nothing sent")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_both_schemes_are_readable(
    visit: Visitor, contents: ReportContents, scheme: str, say: Callable[[str], None]
) -> None:
    seen = visit(contents, color_scheme=scheme)
    paper = _rgb(seen, "body", "backgroundColor")
    assert (sum(paper) < 3 * 128) == (scheme == "dark")
    source = "dark" if scheme == "dark" else "light"
    wanted = seen.page.locator(".heat source" if source == "dark" else ".heat img").first
    address = wanted.get_attribute("srcset" if source == "dark" else "src")
    image = seen.page.locator(".heat img").first
    assert image.evaluate("image => image.currentSrc") == address
    ratios = {
        name: _contrast(_rgb(seen, name, "color"), paper)
        for name in (".headline", ".meaning", "summary", "nav a", "figcaption")
    }
    assert min(ratios.values()) >= 4.5, ratios
    say(f"  {scheme} scheme: least contrast of text {min(ratios.values()):.1f}:1 (4.5 is WCAG AA)")


def _rgb(seen: Visit, selector: str, name: str) -> list[float]:
    value = seen.page.locator(selector).first.evaluate(f"e => getComputedStyle(e).{name}")
    return [float(part) for part in value.partition("(")[2].rstrip(")").split(",")[:3]]


def _contrast(ink: list[float], paper: list[float]) -> float:
    """Contrast ratio of WCAG 2.2: (L1 + 0.05) / (L2 + 0.05) of relative luminances."""
    light, dark = sorted(map(_luminance, (ink, paper)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def _luminance(rgb: list[float]) -> float:
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in _unit(rgb)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _unit(rgb: list[float]) -> list[float]:
    return [value / 255 for value in rgb]


@pytest.mark.parametrize("width", [320, 768, 2560])
def test_no_window_is_too_narrow(
    visit: Visitor, contents: ReportContents, width: int, say: Callable[[str], None]
) -> None:
    seen = visit(contents, (width, 740))
    seen.unfold()
    assert seen.overflow() <= 0
    for x in (0.02, 0.98):
        assert seen.point(".heat", x)
        box = seen.page.locator("#tip").bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= width
    say(f"  {width} pixels wide: no sideways scrolling, tooltip inside the window")


def test_without_scripts_it_still_reads(
    visit: Visitor, contents: ReportContents, say: Callable[[str], None]
) -> None:
    page = visit(contents, java_script_enabled=False).page
    assert page.locator(".findings li").first.is_visible()
    assert page.locator(".heat img:visible").count() == 1
    told = page.locator(".chart noscript p").all_inner_texts()
    assert len(told) == page.locator(".plot").count() > 5
    assert "the busiest" in page.locator("#imbalance").inner_text()
    assert all(text.startswith("A script draws this figure. In words: ") for text in told)
    say("  without scripts: findings, figures and the first picture are there")


def test_on_paper_nothing_is_folded_away(
    visit: Visitor, contents: ReportContents, say: Callable[[str], None]
) -> None:
    seen = visit(contents)
    assert len(seen.page.pdf()) > 20_000
    assert seen.page.locator("details:not([open])").count() == 0
    seen.page.emulate_media(media="print")
    assert not seen.page.locator("nav").is_visible()
    say("  printed: every table is open, navigation is left out")


# Two that lack figures of no other kind are left to test_page: they take long to gather.
@pytest.mark.parametrize("name", [name for name in ODD if name not in ("no phase", "prefill only")])
def test_odd_recordings_open_in_silence(
    visit: Visitor, gather_odd: Callable[[str], ReportContents], name: str
) -> None:
    seen = visit(gather_odd(name), NARROW)
    assert seen.overflow() <= 0
    for nth in range(seen.page.locator(".plot").count()):
        assert "NaN" not in seen.point(".plot", nth=nth)
