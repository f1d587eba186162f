"""The figures as Prometheus metrics: names, units and labels. None has a label per expert.

Of labels there are at most 256 layers, 8 sizes of caches, 2 phases and 16 reasons.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from moeprof.errors import InputError
from moeprof.live.figures import LiveFigures

if TYPE_CHECKING:
    from prometheus_client.core import Metric as Family

MAX_LAYERS = 256
MAX_REASONS = 16
_REASON_CHARS = 64
Values = Mapping[str, float] | float | None  # by label; None: not known


class Metric(NamedTuple):
    """A metric without its prefix. A counter's name ends in `_total`, other units stand last."""

    name: str
    help: str
    value: Callable[[LiveFigures], Values]
    label: str | None = None

    @property
    def exported_name(self) -> str:
        """As Prometheus sees it."""
        return f"moeprof_{self.name}"


def _dropped(figures: LiveFigures) -> dict[str, float]:
    """By reason, the rare ones together: reasons come from the server."""
    ordered = sorted(figures.dropped.items(), key=lambda item: (-item[1], item[0]))
    named: dict[str, float] = {}
    for place, (reason, tokens) in enumerate(ordered):
        name = reason[:_REASON_CHARS] if place < MAX_REASONS - 1 else "other"
        named[name] = named.get(name, 0) + tokens
    return named


def _layers(figures: LiveFigures, value: str) -> dict[str, float]:
    """By layer; of very many the least even."""
    chosen = sorted(figures.per_layer, key=lambda layer: -layer.imbalance)[:MAX_LAYERS]
    values = ((str(layer.layer), getattr(layer, value)) for layer in chosen)
    return {layer: found for layer, found in values if found is not None}


METRICS = (
    Metric("up", "1 if the last poll of the server or trace succeeded.",
           lambda f: f.state != "gone"),
    Metric("recording", "1 while tokens are being recorded.", lambda f: f.state == "recording"),
    Metric("poll_errors_total", "Polls of the server or trace that failed.", lambda f: f.errors),
    Metric("recorded_tokens_total", "Tokens recorded.", lambda f: f.tokens),
    Metric("recorded_phase_tokens_total",
           "Tokens recorded, by phase; of a trace those since watching began.",
           lambda f: {"prefill": f.prefill_tokens, "decode": f.decode_tokens}, "phase"),
    Metric("dropped_tokens_total", "Tokens seen and not recorded.", _dropped, "reason"),
    Metric("sampled_out_tokens_total", "Tokens of requests that sampling left out.",
           lambda f: f.sampled_out),
    Metric("rotated_tokens_total", "Tokens recorded and let go to stay below the size limit.",
           lambda f: f.rotated),
    Metric("unseen_tokens_total", "Tokens recorded that were let go before they were watched.",
           lambda f: f.unseen_tokens),
    Metric("pending_bytes", "Bytes that wait for the writer.", lambda f: f.pending_bytes),
    Metric("written_bytes", "Bytes of the trace on disk.", lambda f: f.written_bytes),
    Metric("window_steps", "Steps that the figures below cover.", lambda f: f.window_steps),
    Metric("window_tokens", "Tokens that the figures below cover.", lambda f: f.window_tokens),
    Metric("expert_imbalance_mean_ratio", "Load of the busiest expert over the mean, by layers.",
           lambda f: f.mean_imbalance),
    Metric("expert_imbalance_max_ratio", "The same of the layer where it is largest.",
           lambda f: f.max_imbalance),
    Metric("layer_expert_imbalance_ratio", "Load of a layer's busiest expert over the mean.",
           lambda f: _layers(f, "imbalance"), "layer"),
    Metric("hottest_expert_share_ratio", "Largest share of a layer's assignments on one expert.",
           lambda f: f.hottest[0].share if f.hottest else None),
    Metric("step_distinct_experts", "Experts that a decode step needs in a layer, mean.",
           lambda f: f.distinct_per_step),
    Metric("step_distinct_experts_by_chance", "The same if each token chose for itself.",
           lambda f: f.distinct_null),
    Metric("layer_step_distinct_experts", "Experts that a decode step needs in this layer, mean.",
           lambda f: _layers(f, "distinct"), "layer"),
    Metric("lru_hit_ratio", "Hits of LRU expert caches of so many slots a layer, decode steps.",
           lambda f: {str(row.slots): row.hit_ratio for row in f.lru}, "slots"),
    Metric("writing_ranks", "Ranks that write a part of the recording.",
           lambda f: sum(rank.writes for rank in f.ranks) or 1),
)  # fmt: skip


class Collector:
    """What a registry of prometheus_client asks at each scrape: `current()` as it is then."""

    def __init__(self, current: Callable[[], LiveFigures]) -> None:
        self._current = current

    def collect(self) -> Iterator[Family]:
        """All metrics; one whose value is not known has no sample."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        figures = self._current()
        for metric in METRICS:
            counts = metric.name.endswith("_total")
            kind = CounterMetricFamily if counts else GaugeMetricFamily
            labels = [metric.label] if metric.label else []
            family = kind(metric.exported_name, metric.help, labels=labels)
            value = metric.value(figures)
            if isinstance(value, Mapping):
                for label, number in value.items():
                    family.add_metric([label], float(number))
            elif value is not None:
                family.add_metric([], float(value))
            yield family


@contextmanager
def serve_metrics(
    current: Callable[[], LiveFigures], port: int, host: str = "127.0.0.1"
) -> Iterator[int]:
    """Answer Prometheus at `http://host:port/metrics` until the context ends; yields the port.

    Port 0 is any that is free. Raises InputError where the address cannot be had.
    """
    try:
        from prometheus_client import CollectorRegistry, start_http_server
    except ModuleNotFoundError:  # installed without its dependencies, beside an engine say
        raise InputError("--prometheus needs a package: pip install prometheus-client") from None
    registry = CollectorRegistry(auto_describe=False)
    registry.register(Collector(current))
    try:
        server, thread = start_http_server(port, host, registry)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"--prometheus {host}:{port}: {reason}") from None
    try:
        yield int(server.server_port)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
