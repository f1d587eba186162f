"""Watch a server that has the plugin, or a trace while it is being written.

WHAT is the server's http:// address, or the trace's folder. Figures are of a sliding window, by the
definitions of `analyze load` and `cache`; LRU hits are of decode steps, a cache a layer. On a
terminal the view is drawn anew at every interval; elsewhere each interval is a line. Ctrl-C ends
it. A server that wants a token gets that of MOEPROF_TOKEN or --token-file.
"""

from __future__ import annotations

import contextlib
import re
import sys
import time
from collections.abc import Iterator
from json import dumps as to_json
from pathlib import Path
from typing import Annotated, Any

import typer

from moeprof.cli.answer import Answer, JsonFlag, QuietFlag, warn
from moeprof.cli.limits import parse_duration
from moeprof.cli.ranges import parse_numbers
from moeprof.cli.recordings import TokenFileFlag, TokenFlag, next_commands, read_token
from moeprof.errors import InputError
from moeprof.live import LiveFigures, ServerSource, Source, TraceSource, Watch
from moeprof.live.dashboard import Dashboard, grafana_dashboard
from moeprof.live.metrics import serve_metrics
from moeprof.report.text.live import live_line, live_text
from moeprof.report.wording import as_next, command

_MIN_INTERVAL = 0.1
_STYLES = {
    r"(?<= )(RECORDING|ENDED)(?=\n)": "bold green",
    r"(?<= )WAITING(?=\n)": "bold yellow",
    r"(?<= )GONE(?=\n)": "bold red",
    r"(?<=\nDropped    )[1-9].*": "red",
    r"\n(Recorded|Now|Window|Dropped|Imbalance|Distinct|LRU hits)": "bold",
    "[▁▂▃▄▅▆▇█]+": "cyan",
}


def run(
    what: Annotated[str | None, typer.Argument(metavar="URL|T", help="Server or trace.")] = None,
    slots: Annotated[
        str | None,
        typer.Option(
            metavar="N,N", help="Sizes of expert caches a layer; 1/8, 1/4, 1/2 of the experts."
        ),
    ] = None,
    window: Annotated[
        str,
        typer.Option(metavar="N|TIME", help="Steps, or a time such as 60s, that figures cover."),
    ] = "512",
    interval: Annotated[str, typer.Option(metavar="TIME", help="Between two looks.")] = "1s",
    once: Annotated[bool, typer.Option("--once", help="Print the figures once.")] = False,
    follow: Annotated[
        bool,
        typer.Option(
            "--follow", help="Wait for a server that is down, or a trace that stands still."
        ),
    ] = False,
    prometheus: Annotated[
        int | None, typer.Option(metavar="PORT", help="Export the figures as metrics meanwhile.")
    ] = None,
    host: Annotated[str, typer.Option(help="Where --prometheus listens.")] = "127.0.0.1",
    dashboard: Annotated[
        bool, typer.Option("--dashboard", help="Print a Grafana dashboard of these metrics.")
    ] = False,
    token: TokenFlag = None,
    token_file: TokenFileFlag = None,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> Answer[Any]:
    """Run the command."""
    if dashboard:
        return Answer(grafana_dashboard(), _dashboard_text, json)
    if what is None:
        raise InputError("live what? Give a server's http:// address, or a trace's folder")
    interval_s = max(parse_duration(interval, "--interval") or 1.0, _MIN_INTERVAL)
    source = _source(what, follow, read_token(token, token_file, what, quiet=quiet))
    try:
        steps, seconds = _length(window)
        sizes = parse_numbers(slots, "--slots")
        watch = Watch(source, slots=sizes, steps=steps, seconds=seconds)
        show = _now if once or json else _lines if not sys.stdout.isatty() else _draw
        with _exported(watch, prometheus, host, quiet=quiet):
            figures = show(watch, interval_s)
    finally:
        source.close()
    trace = Path(what) if (Path(what) / "manifest.json").is_file() else None
    return Answer(figures, _text, json, inputs=[trace] if trace else [])


def _source(what: str, follow: bool, token: str | None) -> Source:
    if re.match(r"https?://", what):
        return ServerSource(what, token=token, follow=follow)
    return TraceSource(Path(what), follow=follow)


@contextlib.contextmanager
def _exported(watch: Watch, port: int | None, host: str, *, quiet: bool) -> Iterator[None]:
    """While open, Prometheus finds the figures at `port`, if one is given."""
    if port is None:
        yield
        return
    with serve_metrics(lambda: watch.figures, port, host) as port:
        warn(f"metrics at http://{host}:{port}/metrics", quiet=quiet)
        yield


def _length(window: str) -> tuple[int | None, float | None]:
    """`512` as steps, or `60s` as seconds."""
    if window.isdecimal():
        return int(window), None
    return None, parse_duration(window, "--window")


def _now(watch: Watch, interval_s: float) -> LiveFigures:
    """The figures once; of what is being recorded after a second look, for the rates."""
    figures = watch.caught_up()
    if figures.state == "recording":
        time.sleep(interval_s)
        figures = watch.caught_up()
    return figures


def _lines(watch: Watch, interval_s: float) -> LiveFigures:
    """A line an interval until the source ends or Ctrl-C; the last figures."""
    with contextlib.suppress(KeyboardInterrupt):
        for figures in watch.follow(interval_s):
            if not watch.behind:
                sys.stdout.write(f"{time.strftime('%H:%M:%S')} {live_line(figures)}\n")
                sys.stdout.flush()
    return watch.figures


def _draw(watch: Watch, interval_s: float) -> LiveFigures:
    """The whole terminal, drawn anew at every interval; the last figures."""
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    console = Console()
    view = Live(console=console, screen=True, auto_refresh=False, transient=True)
    with contextlib.suppress(KeyboardInterrupt), view:
        for figures in watch.follow(interval_s):
            text = Text(live_text(figures, *console.size), no_wrap=True, overflow="crop")
            for pattern, style in _STYLES.items():
                text.highlight_regex(pattern, style)
            view.update(text, refresh=True)
    return watch.figures


def _dashboard_text(result: Dashboard) -> str:
    return to_json(result.dashboard, indent=1)


def _text(figures: LiveFigures) -> str:
    """The last figures, and what to try next."""
    if figures.source.startswith("http"):
        lines = as_next([command("capture", "status", "--url", figures.source)])
    elif figures.state == "ended":
        lines = next_commands(figures.source)
    else:
        lines = as_next([command("info", figures.source)])
    return "\n".join([live_text(figures), "", *lines])
