"""Record a small model of MiniMax-M3's architecture and explain what was recorded.

Real inference, no network: the trained model ships with moeprof. It is not MiniMax-M3; the memory
figures are of the full M3.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from moeprof.cli.answer import Answer, ForceFlag, JsonFlag, QuietFlag
from moeprof.cli.progress import Progress
from moeprof.demo import DemoResult, run_demo
from moeprof.report.text.findings import findings_text
from moeprof.report.wording import command


def run(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write to.")] = Path(
        "moeprof-demo"
    ),
    seed: Annotated[int, typer.Option(help="Seed of the sampling.")] = 0,
    force: ForceFlag = False,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> Answer[DemoResult]:
    """Run the command."""
    progress = Progress(3, quiet=quiet)
    result = run_demo(output, stage=progress.stage, force=force, seed=seed)
    return Answer(result, _text, json)


def _text(result: DemoResult) -> str:
    return "\n".join(
        [
            findings_text(result.findings),
            "",
            f"Open     {result.report}",
            f"Figures  {Path(result.figures[0]).parent}",
            f"Trace    {result.trace} ({result.tokens:,} tokens, {result.dropped} dropped)",
            "",
            "Next:    " + command("analyze", "load", result.trace),
            "         " + command("cache", "curve", result.trace, "--scope", "global"),
            "Your own model: moeprof capture transformers MODEL_PATH --prompts FILE --output T",
        ]
    )
