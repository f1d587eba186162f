"""Write docs/cli.md from the commands' own help; with --check, fail if it is not up to date."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from pathlib import Path

HEAD = """# Command reference

Generated from `--help` by `python docs/reference.py`; do not edit.

Every command takes `--json` (one document on stdout: `schema`, `moeprof`, `inputs` with SHA-256,
`result`, `timing`) and `--quiet` (nothing on stderr but errors).
Exit codes: 0 done, 1 failed, 2 usage, 3 a check failed, 4 infeasible, 130 interrupted.
"""


def reference() -> str:
    """The whole page."""
    from moeprof.cli.main import COMMANDS

    sections = [f"## moeprof {verb}\n\n```text\n{help_of(verb)}\n```\n" for verb in COMMANDS]
    return "\n".join([HEAD, *sections])


def help_of(verb: str) -> str:
    """What `moeprof VERB --help` prints on 80 columns."""
    from moeprof.cli.main import main

    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        main([*verb.split(), "--help"])
    return "\n".join(line.rstrip() for line in printed.getvalue().strip().splitlines())


def run() -> int:
    """Write the page, or compare it."""
    os.environ["COLUMNS"] = os.environ["TERMINAL_WIDTH"] = "80"
    page, path = reference(), Path(__file__).with_name("cli.md")
    if "--check" not in sys.argv:
        path.write_text(page)
    elif not path.exists() or path.read_text() != page:
        sys.stderr.write("docs/cli.md is not what --help says: python docs/reference.py\n")
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(run())
