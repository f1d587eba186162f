"""The page: contents to sections, sections through the template to one self-contained HTML text.

Everything a user supplied passes through Jinja's autoescape; the numbers that the script reads are
JSON in which no tag can begin. The page's own policy forbids it to load anything.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

from moeprof.quantity import Provenance
from moeprof.report.blocks import Heatmap, Section
from moeprof.report.charts import Chart, chart_data
from moeprof.report.contents import ReportContents
from moeprof.report.findings import find_all
from moeprof.report.sampled import rotated_words, sampled_words
from moeprof.report.sections import sections_of
from moeprof.report.wording import counted

LIBRARY = "vendor/plot.min.js"  # draws the charts; vendor/README.md says why this one
SCRIPTS = ("parts", "words", "chart", "heatmap", "tables", "page")  # in the order they need
PROVENANCE_WORDS = {
    Provenance.MEASURED: "observed in this recording",
    Provenance.FITTED: "from a law fitted to measurements",
    Provenance.SPECIFIED: "stated by a configuration, a datasheet or a definition",
    Provenance.ASSUMED: "nobody measured or stated it for this case",
}


def render_html(contents: ReportContents) -> str:
    """The page for `contents`. Same contents, same text."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader("moeprof.report", "page"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["keep_units"] = keep_units
    loader = environment.loader
    sections = sections_of(contents)
    return environment.get_template("template.html").render(
        title=contents.recorded.name,
        subtitle=_subtitle(contents),
        version=contents.version,
        findings=find_all(contents),
        sections=sections,
        provenance_words=PROVENANCE_WORDS,
        css=Markup(_source(environment, loader, "page.css")),
        library=Markup(_source(environment, loader, LIBRARY)),
        js=Markup(_script(environment, loader)),
        data=Markup(embedded_json(_script_data(sections))),
    )


def embedded_json(value: Any) -> str:
    """JSON that is safe inside a script element: no tag, comment or entity can begin in it."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def keep_units(text: str) -> str:
    """`text` with no line break between a number and its unit."""
    return re.sub(r"(?<=\d) (?=(?:%|[kMGT]i?B|[kM] tokens|bit)(?!\w))", "\u00a0", text)


def _source(environment: Any, loader: Any, name: str) -> str:
    text: str = loader.get_source(environment, name)[0]
    return text


def _script(environment: Any, loader: Any) -> str:
    """The page's own scripts as one, which leaves no name in the window."""
    parts = [_source(environment, loader, f"scripts/{name}.js") for name in SCRIPTS]
    return '"use strict";\n{\n' + "\n".join(parts) + "}"


def _subtitle(contents: ReportContents) -> str:
    info = contents.info
    parts = [
        "counts only" if info.counts_only else counted(info.tokens, "token"),
        counted(info.requests, "request") if info.requests and not info.sampling else "",
        sampled_words(info),
        rotated_words(info),
        f"{counted(info.layers, 'MoE layer')} \u00d7 {info.experts} experts, top-{info.top_k}",
        info.engine,
        f"projected on {contents.cluster.name}",
    ]
    return " · ".join(part for part in parts if part)


def _script_data(sections: Iterable[Section]) -> dict[str, Any]:
    """What the script looks up, by the id of the figure."""
    data: dict[str, Any] = {}
    for block in (block for section in sections for block in section.blocks):
        if isinstance(block, Chart):
            data[block.id] = chart_data(block)
        elif isinstance(block, Heatmap):
            data[block.id] = {
                "layers": list(block.layers),
                "experts": block.experts,
                "names": [view.name for view in block.views],
                "views": [view.load for view in block.views],
            }
    return data
