"""Write one self-contained HTML page about a trace; its figures and tables as files if asked.

Memory, speed and cost are those of MODEL on HARDWARE under the load that is named. Steps read the
experts recorded; if MODEL is another than the recorded one, those of even routing, unless
--transfer carries the routing over. Where HARDWARE names a host, as rtx-4090+epyc-9005 does, speed
with experts in its memory is shown too.
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from moeprof.cli.answer import Answer, ForceFlag, JsonFlag, QuietFlag, files_of
from moeprof.cli.progress import Progress
from moeprof.cli.traces import TraceArgument, open_and_warn
from moeprof.hardware import hardware_files
from moeprof.model import load_model
from moeprof.projection import Traffic
from moeprof.projection.advice import LatencyTargets
from moeprof.projection.closed_loop import check_traffic
from moeprof.report import ReportFile, check_targets, gather_report, write_report
from moeprof.report.contents import STAGES
from moeprof.report.projecting import TRAFFIC
from moeprof.report.text.report import report_text


def run(
    trace: TraceArgument,
    output: Annotated[Path, typer.Option("--output", "-o", help="The page to write.")] = Path(
        "report.html"
    ),
    hardware: Annotated[
        str, typer.Option(help="Of memory and speed, and of offload where it names a host.")
    ] = "8xh200",
    model: Annotated[
        str | None, typer.Option(help="Model that is projected, if not the recorded one.")
    ] = None,
    transfer: Annotated[
        str | None,
        typer.Option(
            metavar="METHOD",
            help="Carry the routing over to MODEL: distinct-ratio for speed, hit-ratio for offload,"
            " or both with a comma.",
        ),
    ] = None,
    concurrency: Annotated[int, typer.Option(help="Requests at a time.")] = 64,
    input_len: Annotated[int, typer.Option(help="Prompt tokens of a request.")] = 1024,
    output_len: Annotated[int, typer.Option(help="Generated tokens of a request.")] = 1024,
    tpot_ms: Annotated[
        float | None, typer.Option(help="Advise for this time per output token. [as projected]")
    ] = None,
    ttft_ms: Annotated[
        float | None, typer.Option(help="Advise for this time to the first token. [as projected]")
    ] = None,
    png: Annotated[Path | None, typer.Option(help="Folder for the figures as PNG.")] = None,
    svg: Annotated[Path | None, typer.Option(help="Folder for the figures as SVG.")] = None,
    pdf: Annotated[Path | None, typer.Option(help="Folder for the figures as PDF.")] = None,
    tables: Annotated[
        Path | None, typer.Option(help="Folder for the page's data, a Parquet file a table.")
    ] = None,
    force: ForceFlag = False,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> Answer[ReportFile]:
    """Run the command."""
    traffic = Traffic(concurrency, input_len, output_len)
    check_traffic(traffic)
    given = tpot_ms is not None or ttft_ms is not None
    targets = LatencyTargets(tpot_ms, ttft_ms) if given else None
    figures = {"png": png, "svg": svg, "pdf": pdf}
    check_targets(output, figures, tables, force=force)  # not only after a minute of analysis
    target = None if model is None else load_model(model)
    progress = Progress(STAGES + 1, quiet=quiet)
    contents = gather_report(
        open_and_warn(trace, quiet),
        hardware=hardware,
        target=target,
        transfer=transfer,
        traffic=traffic,
        targets=targets,
        detailed=True,
        command=_command(trace, hardware, model, transfer, traffic, targets),
        stage=progress.stage,
    )
    with progress.stage("writing the page"):
        written = write_report(
            contents,
            output,
            png_dir=png,
            svg_dir=svg,
            pdf_dir=pdf,
            tables_dir=tables,
            force=force,
        )
    return Answer(
        written, report_text, json, inputs=[trace, *files_of(model), *hardware_files(hardware)]
    )


def _command(
    trace: Path,
    hardware: str,
    model: str | None,
    transfer: str | None,
    traffic: Traffic,
    targets: LatencyTargets | None,
) -> str:
    """What gives the same page again, whatever it is called."""
    words = ["moeprof", "report", str(trace), "--hardware", hardware]
    words += [] if model is None else ["--model", model]
    words += [] if transfer is None else ["--transfer", transfer]
    named = (("--concurrency", "concurrency"), ("--input-len", "input_len"))
    for flag, name in (*named, ("--output-len", "output_len")):
        if getattr(traffic, name) != getattr(TRAFFIC, name):
            words += [flag, str(getattr(traffic, name))]
    wanted = (("--tpot-ms", "tpot_ms"), ("--ttft-ms", "ttft_ms"))
    for flag, name in wanted if targets else ():
        if (limit := getattr(targets, name)) is not None:
            words += [flag, f"{limit:g}"]
    return shlex.join(words)
