"""Run the commands that the pages show and put in what they print; with --check, only compare.

    python docs/transcripts.py [--check] [docs/advise.md ...]

A transcript is a fenced `text` block that begins with `$ moeprof `; its command ends with the first
line without a backslash at its end, and may be piped. The rest of the block is replaced by what the
command prints on stdout, run by the shell in the root of the repository with this interpreter. The
line before an excerpt names, counted from 1, the paragraphs of the output that it shows,

    <!-- paragraphs 1-3, 5 -->

and `...` stands for those between and after them. What no command gives is no transcript: no `$`.

Not part of CI, where it would take too long. Run it when constants change, then read the sentences
around the transcripts: nothing else keeps those true.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
TRANSCRIPT = re.compile(
    r"(?P<head>(?:<!-- paragraphs (?P<shown>[\d, -]+) -->\n)?```text\n"
    r"\$ moeprof (?P<command>(?:.*\\\n)*.*)\n)(?P<printed>(?:(?!```).*\n)*)```"
)


@cache
def printed_by(command: str) -> str:
    """What `moeprof COMMAND` prints on 80 columns. Raises RuntimeError where that is nothing."""
    size = {"COLUMNS": "80", "TERMINAL_WIDTH": "80", "PYTHONPATH": str(ROOT)}
    ran = subprocess.run(
        f"{shlex.quote(sys.executable)} -m moeprof {command}",
        shell=True,
        cwd=ROOT,
        env=os.environ | size,
        capture_output=True,
        text=True,
    )
    if not ran.stdout.strip():
        raise RuntimeError(f"moeprof {command}: printed nothing\n{ran.stderr}")
    return "\n".join(line.rstrip() for line in ran.stdout.strip("\n").splitlines())


def paragraph_numbers(shown: str) -> set[int]:
    """`1-3, 5` as numbers."""
    numbers: set[int] = set()
    for part in shown.split(","):
        first, _, last = part.partition("-")
        numbers |= set(range(int(first), int(last or first) + 1))
    return numbers


def excerpt(printed: str, numbers: set[int]) -> str:
    """Those paragraphs, a line `...` for each run of others but one at the start."""
    paragraphs = printed.split("\n\n")
    if max(numbers) > len(paragraphs):
        raise RuntimeError(f"{len(paragraphs)} paragraphs, and {max(numbers)} is asked for")
    lines: list[str] = []
    for number, text in enumerate(paragraphs, start=1):
        if number in numbers:
            lines += ["", text] if number - 1 in numbers else [text]
        elif lines and lines[-1] != "...":
            lines.append("...")
    return "\n".join(lines)


def renewed(match: re.Match[str]) -> str:
    """The block with what its command prints now."""
    printed = printed_by(match["command"])
    if match["shown"]:
        printed = excerpt(printed, paragraph_numbers(match["shown"]))
    return f"{match['head']}{printed}\n```"


def run(arguments: list[str]) -> int:
    """Write the pages, or name the transcripts that differ."""
    paths = [Path(each) for each in arguments if each != "--check"]
    differ = 0
    for path in paths or sorted(Path(__file__).parent.rglob("*.md")):
        page = path.read_text()
        for match in TRANSCRIPT.finditer(page):
            if renewed(match) != match[0]:
                differ += 1
                print(f"{path.name}: $ moeprof {match['command']}")
        if "--check" not in arguments:
            path.write_text(TRANSCRIPT.sub(renewed, page))
    return 3 if differ and "--check" in arguments else 0


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
