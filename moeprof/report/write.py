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
from moeprof.trace.schema import MANIFEST


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
    already and `force` is false, or cannot be written; then nothing of the page is left behind, and
    no figure unless all could be drawn.
    """
    check_targets(path, png_dir, force=force)
    target = Path(path)
    folder = None if png_dir is None else Path(png_dir)
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


def check_targets(
    path: str | Path, png_dir: str | Path | None = None, *, force: bool = False
) -> None:
    """Refuse, before anything is computed, what `write_report` would refuse to write.

    Raises InputError for a file that exists without `force`, and with it for what is no plain file
    (a folder, a link, a device) or belongs to a trace.
    """
    targets = [Path(path)]
    if png_dir is not None:
        folder = Path(png_dir)
        if folder.exists() and not folder.is_dir():
            raise InputError(f"{folder} is a file, name a folder for the figures")
        targets += [folder / name for name in FIGURES]
    for target in targets:
        _check_target(target, force)


def _check_target(path: Path, force: bool) -> None:
    if path.is_dir():
        raise InputError(f"{path} is a folder, name a file")
    if os.path.lexists(path) and (path.is_symlink() or not path.is_file()):
        raise InputError(f"{path} is a link or a device, name a plain file")
    if path.exists() and not force:
        raise InputError(f"{path} exists, it will not be overwritten without --force")
    if any((parent / MANIFEST).is_file() for parent in path.absolute().parents[:2]):
        raise InputError(f"{path} lies in a trace, name a file outside of it")


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
