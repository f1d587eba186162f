"""The page: whole, safe, self-contained, small, and the same every time."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from importlib.resources import files

import numpy as np
import pytest

from moeprof.analysis import analyze_load, counting
from moeprof.model import MoEModel
from moeprof.report import ReportContents, gather_report, render_html
from moeprof.report.charts import Chart, Measure, Series, chart_data
from moeprof.report.findings import find_all
from moeprof.report.html import embedded_json
from moeprof.trace import Trace, synthesize_rows
from tests.report.conftest import HOSTILE

VOID = {"meta", "img", "source", "br", "link", "input"}


class Page(HTMLParser):
    """Collects elements and text, and checks that tags nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("script", "style"):
            self.text += data

    def tags(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.elements if tag == name]


def script_data(text: str) -> dict[str, object]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert found
    data: dict[str, object] = json.loads(found[1])
    return data


def test_every_section_is_there_and_linked(contents: ReportContents) -> None:
    page = Page(render_html(contents))
    ids = [a["id"] for a in page.tags("section")]
    assert ids == [
        "findings",
        "load",
        "imbalance",
        "locality",
        "affinity",
        "specialization",
        "cache",
        "policies",
        "placement",
        "memory",
        "speed",
        "trade-offs",
        "advice",
        "definitions",
        "origin",
    ]
    assert [a["href"] for a in page.tags("a")] == [f"#{name}" for name in ids]
    every = [a["id"] for _, a in page.elements if a.get("id")]
    assert len(every) == len(set(every))


def test_findings_come_first(contents: ReportContents) -> None:
    text = " ".join(Page(render_html(contents)).text.replace("\u00a0", " ").split())
    places = [text.index(finding.headline) for finding in find_all(contents)]
    assert places == sorted(places)
    assert places[-1] < text.index("Each row is a layer")


def test_loads_nothing(contents: ReportContents) -> None:
    page = Page(render_html(contents))
    fetching = {"src", "srcset", "action", "data", "poster", "background", "xlink:href"}
    values = [
        (tag, name, value)
        for tag, attributes in page.elements
        for name, value in attributes.items()
        if name in fetching or (name == "href" and tag != "a")
    ]
    assert values
    assert all(value and value.startswith("data:image/png;base64,") for _, _, value in values)
    assert not page.tags("link")
    style = render_html(contents).partition("<style>")[2].partition("</style>")[0]
    assert "url(" not in style
    assert "@import" not in style
    policy = [a["content"] for a in page.tags("meta") if a.get("http-equiv")]
    assert policy and "default-src 'none'" in str(policy[0])


def test_what_users_supply_cannot_break_out(hostile: ReportContents) -> None:
    text = render_html(hostile)
    page = Page(text)
    assert len(page.tags("script")) == 3
    assert not any("onerror" in a for _, a in page.elements)
    assert not page.tags("b")
    for harmless in (
        "&lt;script&gt;alert(1)&lt;/script&gt;",
        "\\u003cscript\\u003ealert(1)\\u003c/script\\u003e",  # in the data
        "onerror=alert(2)&gt;",
    ):
        assert harmless in text
        text = text.replace(harmless, "")
    assert "alert(" not in text
    assert "</style>{{7*7}}" in page.text  # shown as it is, not run
    assert all(label.split("\x1b")[0] in page.text for label in HOSTILE)


def test_json_in_the_page_cannot_end_its_element() -> None:
    value = {"a": ["</script><!--", "&amp;", "\u2028"]}
    text = embedded_json(value)
    assert not set(text) & set("<>&\u2028")
    assert json.loads(text) == value


def test_the_library_is_the_one_that_its_recipe_builds() -> None:
    """What is vendored is what README.md there says, byte for byte."""
    folder = files("moeprof.report") / "page" / "vendor"
    stated = re.search(r"SHA-256\W+([0-9a-f]{64})", (folder / "README.md").read_text())
    assert stated
    assert hashlib.sha256((folder / "plot.min.js").read_bytes()).hexdigest() == stated[1]


def test_the_page_carries_the_library_with_its_licence(contents: ReportContents) -> None:
    library = (files("moeprof.report") / "page" / "vendor" / "plot.min.js").read_text()
    text = render_html(contents)
    assert library in text
    assert "</script" not in library
    assert "Copyright 2020-2025 Observable, Inc." in library


def test_charts_hold_values_in_their_own_units(contents: ReportContents) -> None:
    data = script_data(render_html(contents))
    chart = data["imbalance-layer"]
    assert isinstance(chart, dict) and contents.load
    assert [
        [layer, pytest.approx(value, rel=1e-5)] for layer, value in chart["series"][0]["points"]
    ] == [[layer.layer, layer.imbalance] for layer in contents.load.per_layer]
    assert chart["y"]["start"] == 1


def test_nothing_is_taken_for_empty_because_it_is_zero() -> None:
    points = [(0.0, 0.0, 0.0, 1 / 3)]
    chart = Chart("id", "t", "a", Measure("x", start=0), Measure("y"), [Series("s", "a", points)])
    data = chart_data(chart)
    assert data["x"] == {"label": "x", "scale": "linear", "start": 0}
    assert data["series"][0]["points"] == [[0, 0, 0, 0.333333]]
    assert "marks" not in data and "right" not in data


def test_heatmap_holds_the_load(contents: ReportContents) -> None:
    heat = script_data(render_html(contents))["heat"]
    assert isinstance(heat, dict)
    assert contents.load is not None
    assert heat["views"][0] == contents.load.load.tolist()
    assert heat["layers"] == [layer.layer for layer in contents.load.per_layer]
    names = list(contents.views)
    assert names == ["all tokens", "prefill", "decode", "label a", "label b"]
    assert (contents.views["prefill"] + contents.views["decode"] == contents.load.load).all()


def test_odd_recordings_render(odd: ReportContents) -> None:
    page = Page(render_html(odd))
    assert {a["id"] for a in page.tags("section")} >= {"findings", "load", "cache", "memory"}
    for part, reason in odd.missing.items():
        if part in ("load", "cache", "memory"):
            assert reason in page.text


def test_loads_and_views_come_from_two_passes(
    trace: Trace, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[int] = []
    count = counting.count_assignments

    def counted(trace: Trace, group: np.ndarray, groups: int) -> np.ndarray:
        passes.append(groups)
        return count(trace, group, groups)

    monkeypatch.setattr(counting, "count_assignments", counted)
    contents = gather_report(trace)
    assert passes == [4, 47]  # phase x label, windows
    assert (
        contents.gpu_load and contents.gpu_load.to_dict() == analyze_load(trace, gpus=8).to_dict()
    )
    for label in "ab":
        ids = trace.experts(1)[trace.label == label].ravel()
        expected = np.bincount(ids, minlength=16)
        np.testing.assert_array_equal(contents.views[f"label {label}"][0], expected)


def test_a_damaged_recording_still_has_a_page(
    gather_odd: Callable[[str], ReportContents],
) -> None:
    contents = gather_odd("damaged")
    assert set(contents.missing) == {"load", "cache", "routed speed"}
    assert "in layer 2 an expert id is not below 16" in Page(render_html(contents)).text


def test_counts_refuse_what_needs_order(gather_odd: Callable[[str], ReportContents]) -> None:
    contents = gather_odd("counts only")
    assert contents.load is not None
    assert contents.layer_curve is None
    page = Page(render_html(contents))
    assert "counts only, and a cache replay needs the order of tokens" in page.text


def test_same_contents_same_bytes(model: MoEModel) -> None:
    def render() -> str:
        return render_html(gather_report(Trace.in_memory(model, *synthesize_rows(model, 300))))

    assert render() == render()


def test_full_size_stays_small_and_says_what_it_leaves_out() -> None:
    model = MoEModel.preset("minimax-m3")
    labels = [f"label {i}" for i in range(30)]
    rows, requests = synthesize_rows(model, 4_000, requests=30, labels=labels)
    contents = gather_report(Trace.in_memory(model, rows, requests))
    text = render_html(contents)
    assert len(text.encode()) < 2_000_000
    assert len(contents.views) + contents.views_left_out == 33
    assert f"{contents.views_left_out} more choices of tokens" in Page(text).text
    assert "Of the 7,296 sizes about 256 are drawn" in Page(text).text
