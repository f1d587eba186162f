"""What a command hands back, and the two ways it is shown: text, or one JSON document."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Generic, TextIO, TypeVar

import typer

from moeprof import __version__
from moeprof.result import Result

JsonFlag = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
QuietFlag = Annotated[bool, typer.Option("--quiet", help="No progress and no warnings.")]
ForceFlag = Annotated[bool, typer.Option("--force", help="Overwrite what exists.")]
R = TypeVar("R", bound=Result)


@dataclass(frozen=True)
class Answer(Generic[R]):
    """A result, how to put it in words, and the files that it was computed from."""

    result: R
    text: Callable[[R], str]
    json: bool
    inputs: Sequence[Path] = ()
    exit_code: int = 0
    timing: dict[str, float] = field(default_factory=dict)
    stream: TextIO | None = None  # where it is shown; None: stdout

    def show(self, verb: str, seconds: float) -> None:
        """Write the answer. Wall-clock figures stand in `timing` alone."""
        stream = self.stream or sys.stdout
        if not self.json:
            stream.write(self.text(self.result).rstrip("\n") + "\n")
            return
        document = {
            "schema": f"moeprof.{verb.replace(' ', '.')}/1",
            "moeprof": __version__,
            "inputs": [describe_input(path) for path in self.inputs],
            "result": self.result.to_dict(),
            "timing": {"seconds": round(seconds, 6), **self.timing},
        }
        stream.write(json.dumps(document, allow_nan=False) + "\n")
        stream.flush()


def describe_input(path: Path) -> dict[str, Any]:
    """Path and SHA-256; of a trace, that of its manifests, which hold its files' checksums."""
    file = path / "manifest.json" if path.is_dir() else path
    if not file.exists() and (path / "ranks").is_dir():
        manifests = sorted(path.glob("ranks/*/manifest.json"))
        joined = hashlib.sha256(b"".join(manifest.read_bytes() for manifest in manifests))
        return {"path": str(path), "sha256": joined.hexdigest()}
    with file.open("rb") as content:
        return {"path": str(path), "sha256": hashlib.file_digest(content, "sha256").hexdigest()}


def warn(message: str, *, quiet: bool = False) -> None:
    """A line on stderr that is not an error."""
    if not quiet:
        sys.stderr.write(f"moeprof: {message}\n")


def files_of(*named: str | None) -> list[Path]:
    """The user's own files among what MODEL, HW and the like name: a folder means its config."""
    paths = [Path(name) for name in named if name is not None]
    files = [path / "config.json" if path.is_dir() else path for path in paths]
    return [file for file in files if file.is_file()]
