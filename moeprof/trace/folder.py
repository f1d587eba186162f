"""The folder of a trace: made empty, replaced only where it was a trace, swapped in whole."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from moeprof.errors import TraceError
from moeprof.trace.schema import FOLDER_MODE, MANIFEST, RANKS, SEGMENTS
from moeprof.trace.streams import TraceWriteError, first_line


def is_trace(path: Path) -> bool:
    """Whether the folder holds a recording: of one writer, or nothing but those of ranks."""
    if (path / MANIFEST).is_file():
        return True
    if not (path / RANKS).is_dir() or len(list(path.iterdir())) > 1:
        return False
    return all((rank / MANIFEST).is_file() for rank in (path / RANKS).iterdir())


def refuse_existing(path: Path, force: bool) -> None:
    """TraceError if something stands at `path`, unless it is a trace and `force` is true."""
    if path.exists():
        if not force:
            raise TraceError(f"{path} exists, it will not be overwritten without --force")
        if not is_trace(path):
            raise TraceError(f"{path} is not a trace, --force replaces only traces")


def make_folder(path: Path, force: bool) -> None:
    """An empty folder for the trace; replaces a trace, and nothing but a trace, when forced."""
    refuse_existing(path, force)
    try:
        if path.exists():
            shutil.rmtree(path)
        for parent in reversed([p for p in path.parents if not p.exists()]):
            parent.mkdir(mode=FOLDER_MODE, exist_ok=True)  # parents=True would let others in
        path.mkdir(mode=FOLDER_MODE)
        (path / SEGMENTS).mkdir(mode=FOLDER_MODE)
    except OSError as error:
        raise TraceError(f"{path}: cannot be created: {error.strerror}") from None


@contextmanager
def drafted(path: Path, force: bool) -> Iterator[Path]:
    """A path beside `path` to write a trace to, which takes its place once that is done.

    If the block raises, the draft is removed and what was at `path` stays. A draft that a killed
    process left is replaced by the next.
    """
    refuse_existing(path, force)
    path = path.resolve()
    draft, old = (path.with_name(f".{path.name}.{kind}") for kind in ("draft", "old"))
    shutil.rmtree(draft, ignore_errors=True)
    try:
        yield draft
        if path.exists():
            shutil.rmtree(old, ignore_errors=True)
            path.rename(old)
        draft.rename(path)
    except OSError as error:
        reason = error.strerror or first_line(error)
        raise TraceWriteError(error.errno, reason, str(path)) from None
    finally:
        shutil.rmtree(draft, ignore_errors=True)
        if path.exists():
            shutil.rmtree(old, ignore_errors=True)
