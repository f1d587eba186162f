"""What Prometheus scrapes, and the dashboard that shows it."""

from __future__ import annotations

import importlib.util
import json
import re
import urllib.request
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from moeprof import MoEModel
from moeprof.errors import InputError
from moeprof.live import LiveFigures, ServerSource, Watch
from moeprof.live.dashboard import PANELS, grafana_dashboard
from moeprof.live.metrics import METRICS, serve_metrics
from tests.conftest import small_config
from tests.live.rows import engine_rows
from tests.live.server import FakeRank, serving

MODEL = MoEModel.from_config(small_config())
ROWS = engine_rows(MODEL, [4] * 30)
COMMITTED = Path(__file__).parents[2] / "docs" / "grafana" / "moeprof.json"
needs_client = pytest.mark.skipif(
    importlib.util.find_spec("prometheus_client") is None,
    reason="prometheus-client is not installed: pip install prometheus-client",
)


@pytest.fixture(scope="module")
def figures() -> LiveFigures:
    rank = FakeRank(MODEL, ROWS, status={"dropped": {"behind": 5, 'quo"te\n': 2}})
    with serving([rank]) as server, closing(ServerSource(server.url)) as source:
        watch = Watch(source, slots=[4, 12], steps=100)
        watch.poll()
        return watch.poll()


def scraped(figures: LiveFigures) -> tuple[str, str]:
    """The page and its content type."""
    with serve_metrics(lambda: figures, 0) as port:
        page = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10)
        with page:
            return page.read().decode(), page.headers["Content-Type"]


def samples_of(page: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    from prometheus_client.parser import text_string_to_metric_families

    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
    }


@needs_client
def test_a_scrape_gives_the_figures(figures: LiveFigures) -> None:
    page, kind = scraped(figures)
    assert kind.startswith("text/plain")
    found = samples_of(page)

    def sample(name: str, **labels: str) -> float:
        return found["moeprof_" + name, frozenset(labels.items())]

    assert sample("up") == sample("recording") == sample("writing_ranks") == 1
    assert sample("recorded_tokens_total") == len(ROWS)
    assert sample("recorded_phase_tokens_total", phase="decode") == figures.decode_tokens
    assert sample("dropped_tokens_total", reason="behind") == 5
    assert sample("dropped_tokens_total", reason='quo"te\n') == 2
    assert sample("expert_imbalance_mean_ratio") == figures.mean_imbalance
    for layer in figures.per_layer:
        name = str(layer.layer)
        assert sample("layer_expert_imbalance_ratio", layer=name) == layer.imbalance
        assert sample("layer_step_distinct_experts", layer=name) == layer.distinct
    for row in figures.lru:
        assert sample("lru_hit_ratio", slots=str(row.slots)) == row.hit_ratio
    assert sample("pending_bytes") == 100
    assert ("moeprof_written_bytes", frozenset()) not in found  # a server does not say
    assert {name for name, _ in found} <= {metric.exported_name for metric in METRICS}


@needs_client
def test_labels_are_bounded_whatever_a_server_says(figures: LiveFigures) -> None:
    many = replace(
        figures,
        dropped={f"reason {n} {'x' * 500}": n + 1 for n in range(60)},
        per_layer=[replace(figures.per_layer[0], layer=n) for n in range(3000)],
    )
    found = samples_of(scraped(many)[0])
    reasons = {k: v for k, v in found.items() if k[0] == "moeprof_dropped_tokens_total"}
    assert len(reasons) == 16 and sum(reasons.values()) == sum(range(61))
    assert max(len(dict(labels)["reason"]) for _, labels in reasons) <= 64
    assert sum(name == "moeprof_layer_expert_imbalance_ratio" for name, _ in found) == 256


@needs_client
def test_a_port_that_is_taken_is_one_line(figures: LiveFigures) -> None:
    with serve_metrics(lambda: figures, 0) as port:
        again = serve_metrics(lambda: figures, port)
        with pytest.raises(InputError, match=f"--prometheus 127.0.0.1:{port}"), again:
            pass


@needs_client
def test_nothing_to_tell_yet_is_no_sample(figures: LiveFigures) -> None:
    empty = replace(
        figures, state="gone", mean_imbalance=None, per_layer=[], lru=[], hottest=[], ranks=[]
    )
    found = samples_of(scraped(empty)[0])
    names = {name for name, _ in found}
    assert found["moeprof_up", frozenset()] == 0
    assert "moeprof_expert_imbalance_mean_ratio" not in names
    assert "moeprof_lru_hit_ratio" not in names


def test_names_follow_the_conventions_of_prometheus() -> None:
    # https://prometheus.io/docs/practices/naming/: base units, _total for counters alone
    for metric in METRICS:
        assert re.fullmatch(r"moeprof_[a-z]+(_[a-z]+)*", metric.exported_name)
        assert metric.help.endswith(".") and metric.label != "expert"
        assert not re.search(r"_(ms|kb|mb|percent|count)(_|$)", metric.name)
    assert len({metric.name for metric in METRICS}) == len(METRICS)


def queried() -> set[str]:
    """Names of metrics in all queries of the dashboard."""
    panels = grafana_dashboard().dashboard["panels"]
    text = " ".join(target["expr"] for panel in panels for target in panel["targets"])
    return set(re.findall(r"moeprof_\w+", text))


def test_the_dashboard_shows_every_metric_and_no_other() -> None:
    assert queried() == {metric.exported_name for metric in METRICS}


def test_queries_keep_the_labels_of_their_metrics() -> None:
    labels = {metric.exported_name: metric.label for metric in METRICS}
    for panel in grafana_dashboard().dashboard["panels"]:
        for target in panel["targets"]:
            expr = target["expr"]
            (name,) = re.findall(r"moeprof_\w+", expr)
            grouped = set(re.findall(r"by \((\w+)\)", expr))
            legend = set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
            assert grouped | legend <= {labels[name]}
            assert ("rate(" in expr) <= name.endswith("_total")
            assert expr.count("(") == expr.count(")") and expr.count("{") == expr.count("}")


def test_the_dashboard_is_one_that_grafana_imports() -> None:
    """Against the classic model: grafana/grafana, kinds/dashboard/dashboard_kind.cue."""
    dashboard = json.loads(json.dumps(grafana_dashboard().dashboard, allow_nan=False))
    assert dashboard["id"] is None and 8 <= len(dashboard["uid"]) <= 40
    assert dashboard["graphTooltip"] in (0, 1, 2) and 36 <= dashboard["schemaVersion"] < 1 << 16
    assert re.fullmatch(r"\d+[smhd]", dashboard["refresh"])
    taken: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        taken |= checked_place(panel["gridPos"], taken)
        assert panel["type"] in ("stat", "timeseries", "bargauge")
        assert set(panel["fieldConfig"]) == {"defaults", "overrides"}
        check_targets(panel)
    assert [panel["id"] for panel in dashboard["panels"]] == list(range(1, len(PANELS) + 1))
    variables = {variable["name"]: variable for variable in dashboard["templating"]["list"]}
    used = set(re.findall(r"\$\{?([a-z]\w+)", json.dumps(dashboard)))
    assert used == set(variables)
    assert {v["type"] for v in variables.values()} == {"datasource", "query"}


def checked_place(place: dict[str, int], taken: set[tuple[int, int]]) -> set[tuple[int, int]]:
    """The cells of a panel, none of which another has."""
    assert place["w"] > 0 and place["h"] > 0 and place["x"] + place["w"] <= 24
    columns = range(place["x"], place["x"] + place["w"])
    cells = {(x, y) for x in columns for y in range(place["y"], place["y"] + place["h"])}
    assert not cells & taken
    return cells


def check_targets(panel: dict[str, Any]) -> None:
    letters = [target["refId"] for target in panel["targets"]]
    assert letters and len(set(letters)) == len(letters)
    for source in [panel["datasource"], *(target["datasource"] for target in panel["targets"])]:
        assert source == {"type": "prometheus", "uid": "${datasource}"}


def test_the_committed_dashboard_is_what_the_command_prints() -> None:
    assert json.loads(COMMITTED.read_text()) == grafana_dashboard().dashboard


def test_every_metric_is_documented() -> None:
    page = (COMMITTED.parents[1] / "live.md").read_text()
    for metric in METRICS:
        assert f"| `{metric.name}` | {metric.label or ''} | {metric.help[:-1]} |\n" in page
