"""A Grafana dashboard of the metrics, in the classic JSON model, which Grafana 9 to 13 import.

Fields as in https://grafana.com/docs/grafana/latest/visualizations/dashboards/build-dashboards/
view-dashboard-json-model/ and grafana/grafana, kinds/dashboard/dashboard_kind.cue.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from moeprof.result import Result

COLUMNS = 24  # of Grafana's grid
SCHEMA_VERSION = 39
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
_SELECT = '{job=~"$job", instance=~"$instance"}'


class Panel(NamedTuple):
    """A panel: queries with a metric in braces for its name and labels, and their legends."""

    title: str
    kind: str  # stat, timeseries or bargauge
    queries: Sequence[tuple[str, str]]
    unit: str = "short"  # as Grafana names units
    width: int = 8
    height: int = 8
    help: str = ""
    highest: float | None = None


_NONE = "or vector(0)"
PANELS = (
    Panel("Source", "stat", [("<up>", "reached"), ("<recording>", "recording")],
          "bool_yes_no", 6, 4),
    Panel("Tokens recorded", "stat", [("<recorded_tokens_total>", "tokens")], "short", 6, 4),
    Panel("Tokens dropped", "stat", [(f"sum(<dropped_tokens_total>) {_NONE}", "dropped")],
          "short", 6, 4),
    Panel("Ranks, steps and tokens of the window", "stat",
          [("<writing_ranks>", "ranks"), ("<window_steps>", "steps"),
           ("<window_tokens>", "tokens")], "short", 6, 4),
    Panel("Tokens a second", "timeseries",
          [("sum by (phase) (rate(<recorded_phase_tokens_total>[$__rate_interval]))",
            "{{phase}}"), ("rate(<recorded_tokens_total>[$__rate_interval])", "all")]),
    Panel("Not in the figures, tokens a second", "timeseries",
          [("sum by (reason) (rate(<dropped_tokens_total>[$__rate_interval]))",
            "dropped: {{reason}}"),
           ("rate(<sampled_out_tokens_total>[$__rate_interval])", "left out by chance"),
           ("rate(<rotated_tokens_total>[$__rate_interval])", "let go for room"),
           ("rate(<unseen_tokens_total>[$__rate_interval])", "not seen"),
           ("rate(<poll_errors_total>[$__rate_interval])", "failed polls")],
          help="Dropped tokens are missing in the recording, unseen ones in these figures alone."),
    Panel("Bytes", "timeseries",
          [("<written_bytes>", "written"), ("<pending_bytes>", "waiting")], "bytes"),
    Panel("Imbalance", "timeseries",
          [("<expert_imbalance_mean_ratio>", "mean of layers"),
           ("<expert_imbalance_max_ratio>", "worst layer")],
          help="Load of the busiest expert over the mean load of its layer. 1 is even."),
    Panel("Distinct experts of a decode step, by layer", "timeseries",
          [("<step_distinct_experts>", "recorded"),
           ("<step_distinct_experts_by_chance>", "if each token chose for itself")]),
    Panel("LRU hits by slots a layer", "timeseries",
          [("<lru_hit_ratio>", "{{slots}} slots")], "percentunit", highest=1,
          help="An expert cache a layer, all experts of a decode step looked up at once."),
    Panel("Imbalance by layer", "bargauge",
          [("sort_desc(<layer_expert_imbalance_ratio>)", "layer {{layer}}")], "short", 8, 14),
    Panel("Distinct experts of a decode step by layer", "bargauge",
          [("sort_desc(<layer_step_distinct_experts>)", "layer {{layer}}")], "short", 8, 14),
    Panel("Largest share of a layer on one expert", "timeseries",
          [("<hottest_expert_share_ratio>", "hottest expert")], "percentunit", 8, 14),
)  # fmt: skip


@dataclass(frozen=True)
class Dashboard(Result):
    """What Grafana imports."""

    dashboard: dict[str, Any]


def grafana_dashboard() -> Dashboard:
    """The dashboard, panels from left to right and top to bottom."""
    panels = []
    x = y = 0
    for number, panel in enumerate(PANELS, 1):
        if x + panel.width > COLUMNS:
            x, y = 0, y + PANELS[number - 2].height
        panels.append(_panel(panel, number, x, y))
        x += panel.width
    variables = [
        {"name": "datasource", "type": "datasource", "label": "Data source", "query": "prometheus"},
        _variable("job", "label_values(moeprof_up, job)"),
        _variable("instance", 'label_values(moeprof_up{job=~"$job"}, instance)'),
    ]
    return Dashboard(
        {
            "id": None,
            "uid": "moeprof-live",
            "title": "moeprof: MoE routing, live",
            "description": "Exported by: moeprof live URL --prometheus PORT",
            "tags": ["moeprof", "mixture-of-experts"],
            "timezone": "browser",
            "editable": True,
            "graphTooltip": 1,
            "time": {"from": "now-30m", "to": "now"},
            "refresh": "10s",
            "schemaVersion": SCHEMA_VERSION,
            "version": 1,
            "templating": {"list": variables},
            "annotations": {"list": []},
            "links": [],
            "panels": panels,
        }
    )


def _panel(panel: Panel, number: int, x: int, y: int) -> dict[str, Any]:
    defaults: dict[str, Any] = {"unit": panel.unit}
    if panel.kind == "timeseries":
        defaults["min"] = 0
    if panel.highest is not None:
        defaults["max"] = panel.highest
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.help,
        "datasource": DATASOURCE,
        "gridPos": {"x": x, "y": y, "w": panel.width, "h": panel.height},
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": _OPTIONS[panel.kind],
        "targets": [
            {
                "refId": chr(ord("A") + place),
                "datasource": DATASOURCE,
                "expr": query.replace("<", "moeprof_").replace(">", _SELECT),
                "legendFormat": legend,
                "instant": panel.kind == "bargauge",
                "range": panel.kind != "bargauge",
            }
            for place, (query, legend) in enumerate(panel.queries)
        ],
    }


def _variable(name: str, query: str) -> dict[str, Any]:
    return {
        "name": name,
        "type": "query",
        "label": name,
        "datasource": DATASOURCE,
        "query": {"query": query, "refId": name},
        "definition": query,
        "refresh": 2,
        "includeAll": True,
        "multi": True,
        "current": {"text": "All", "value": "$__all"},
    }


_LAST = {"calcs": ["lastNotNull"], "fields": "", "values": False}
_OPTIONS: dict[str, dict[str, Any]] = {
    "stat": {"reduceOptions": _LAST, "colorMode": "value", "graphMode": "none"},
    "timeseries": {
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []},
        "tooltip": {"mode": "multi", "sort": "desc"},
    },
    "bargauge": {"reduceOptions": _LAST, "orientation": "horizontal", "displayMode": "basic"},
}
