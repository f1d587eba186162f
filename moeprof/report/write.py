"""The report as files: whole or not at all, and never over what exists unless told to."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from moeprof.errors import InputError
from moeprof.report.contents import ReportContents, gather_report
from moeprof.report.figures import FIGURES, figure_file, save_figures
from moeprof.report.html import render_html
from moeprof.report.parquet import arrow_tables, save_tables
from moeprof.report.sections import sections_of
from moeprof.result import Result
from moeprof.trace import Trace
from moeprof.trace.schema import MANIFEST


@dataclass(frozen=True)
class ReportFile(Result):
    """What was written."""

    path: str
    bytes: int
    figures: list[str] = field(default_factory=list)
    tables: list[str] = field(default_factory=list)


def write_report(
    contents_or_trace: ReportContents | Trace,
    path: str | Path,
    *,
    png_dir: str | Path | None = None,
    svg_dir: str | Path | None = None,
    pdf_dir: str | Path | None = None,
    tables_dir: str | Path | None = None,
    force: bool = False,
) -> ReportFile:
    """Write the page to `path` and, where folders are named, its figures as PNG, SVG or PDF and its
    tables as Parquet.

    A trace is gathered with the defaults of `gather_report`. Raises InputError if a file is there
    already and `force` is false, or cannot be written; then nothing of the page is left behind, and
    no figure of a format unless all could be drawn.
    """
    folders = _named({"png": png_dir, "svg": svg_dir, "pdf": pdf_dir})
    check_targets(path, folders, tables_dir, force=force)
    contents = contents_or_trace
    if isinstance(contents, Trace):
        contents = gather_report(contents)
    page = render_html(contents).encode()
    tables = arrow_tables(sections_of(contents)) if tables_dir is not None else {}
    for name in tables:
        _check_target(Path(tables_dir or "") / f"{name}.parquet", force)
    try:
        figures = [each for kind in folders for each in save_figures(contents, folders[kind], kind)]
        saved = save_tables(tables, tables_dir) if tables_dir is not None else []
        _write_whole(Path(path), page)
    except OSError as error:
        raise InputError(f"{error.filename or path}: cannot be written: {error.strerror}") from None
    return ReportFile(str(Path(path)), len(page), list(map(str, figures)), list(map(str, saved)))


def _named(folders: Mapping[str, str | Path | None]) -> dict[str, str | Path]:
    return {name: folder for name, folder in folders.items() if folder is not None}


def check_targets(
    path: str | Path,
    figures: Mapping[str, str | Path | None] | None = None,
    tables_dir: str | Path | None = None,
    *,
    force: bool = False,
) -> None:
    """Refuse, before anything is computed, what `write_report` would refuse to write.

    `figures` are folders by image format. Raises InputError for a file that exists without `force`,
    and with it for what is no plain file (a folder, a link, a device) or belongs to a trace.
    """
    targets = [Path(path)]
    for kind, folder in _named(figures or {}).items():
        _check_folder(Path(folder), "figures")
        targets += [Path(folder) / figure_file(name, kind) for name in FIGURES]
    if tables_dir is not None:
        _check_folder(Path(tables_dir), "tables")
    for target in targets:
        _check_target(target, force)


def _check_folder(folder: Path, what: str) -> None:
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file, name a folder for the {what}")


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
