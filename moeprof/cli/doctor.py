"""Say what works here, what would stop a recording, and what to do about it.

Looks at Python and packages, GPUs, engines, the plugin for vLLM, limits of the system, and the
folder that traces would go to; with --url also at a server, which is asked for one token. Ends
with 3 if something fails that a recording needs.
"""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Annotated

import typer

from moeprof.cli.answer import Answer, JsonFlag, QuietFlag
from moeprof.cli.recordings import TokenFileFlag, TokenFlag, read_token
from moeprof.doctor import Check, DoctorResult, run_doctor
from moeprof.errors import CheckFailedError
from moeprof.report.text.layout import printable

WIDTH = 100


def run(
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Where a trace would go; a folder or its path.")
    ] = Path("."),
    url: Annotated[
        str | None, typer.Option("--url", metavar="URL", help="A running server, http://HOST:PORT")
    ] = None,
    token: TokenFlag = None,
    token_file: TokenFileFlag = None,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> Answer[DoctorResult]:
    """Run the command."""
    known = read_token(token, token_file, url, quiet=quiet) if url else None
    result = run_doctor(output, url=url, token=known)
    code = CheckFailedError.exit_code if result.failed else 0
    return Answer(result, doctor_text, json, exit_code=code)


def doctor_text(result: DoctorResult) -> str:
    """A line a check, wrapped under itself, with what to do below those that want something."""
    width = max(len(check.name) for check in result.checks) + 2
    lines = [line for check in result.checks for line in _lines(check, width)]
    failed = ", ".join(result.failed)
    verdict = f"would stop a recording: {failed}" if failed else "nothing would stop a recording"
    return "\n".join([*lines, "", textwrap.fill(verdict, WIDTH)])


def _lines(check: Check, width: int) -> list[str]:
    mark = "ok  " if check.ok else "FAIL" if check.needed else "-   "
    indent = " " * (6 + width)
    texts = [check.detail] + [f"-> {check.remedy}"] * bool(check.remedy)
    filled = [
        textwrap.fill(
            printable(text),
            WIDTH,
            initial_indent=f"{mark}  {check.name:<{width}}" if place == 0 else indent,
            subsequent_indent=indent,
            break_on_hyphens=False,
        )
        for place, text in enumerate(texts)
    ]
    return filled
