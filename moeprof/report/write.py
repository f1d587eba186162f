"""The report as files: whole or not at all, and never over what exists unless told to."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from moeprof.errors import InputError
from moeprof.report.contents import ReportContents, gather_report
from moeprof.report.figures import FIGURES, save_figures
from moeprof.report.html import render_html
from moeprof.result import Result
from moeprof.trace import Trace


@dataclass(frozen=True)
class ReportFile(Result):
    """What was written."""

    path: str
    bytes: int
    figures: list[str] = field(default_factory=list)


def write_report(
    contents_or_trace: ReportContents | Trace,
    path: str | Path,
    *,
    png_dir: str | Path | None = None,
    force: bool = False,
) -> ReportFile:
    """Write the page to `path` and, where asked, the figures as PNG into folder `png_dir`.

    A trace is gathered with the defaults of `gather_report`. Raises InputError if a file is there
    already and `force` is false, or cannot be written; then nothing of the page is left behind.
    """
    target = Path(path)
    folder = None if png_dir is None else Path(png_dir)
    _refuse_existing([target, *([folder / name for name in FIGURES] if folder else [])], force)
    contents = contents_or_trace
    if isinstance(contents, Trace):
        contents = gather_report(contents)
    page = render_html(contents).encode()
    try:
        figures = save_figures(contents, folder) if folder else []
        _write_whole(target, page)
    except OSError as error:
        raise InputError(
            f"{error.filename or target}: cannot be written: {error.strerror}"
        ) from None
    return ReportFile(str(target), len(page), [str(figure) for figure in figures])


def _refuse_existing(paths: list[Path], force: bool) -> None:
    for path in paths:
        if path.is_dir():
            raise InputError(f"{path} is a folder, name a file")
        if path.exists() and not force:
            raise InputError(f"{path} exists, it will not be overwritten without --force")


def _write_whole(path: Path, content: bytes) -> None:
    """Replace `path` in one step; a failure leaves what was there, and no draft."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        draft.write_bytes(content)
        os.replace(draft, path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
