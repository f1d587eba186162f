"""Foreign files opened like a trace: converted into a folder that goes when the trace does."""

from __future__ import annotations

import weakref
from pathlib import Path
from tempfile import TemporaryDirectory

from moeprof.trace.formats.importing import import_trace
from moeprof.trace.reader import Trace, open_folder


def open_foreign(path: Path) -> Trace:
    """The recording in an importable file or folder; its format is recognised by content.

    What was skipped, and what is assumed, is in the trace's `notes`. The conversion takes as much
    of the temporary folder's disk as the trace would; import it once where it is used often.
    Raises InputError, one line, where the file is of no known format or malformed.
    """
    folder = TemporaryDirectory(prefix="moeprof-")
    try:
        result = import_trace(path, Path(folder.name) / "imported.moetrace")
        trace = open_folder(Path(result.path))
    except BaseException:
        folder.cleanup()
        raise
    skipped = [f"skipped {count:,}: {reason}" for reason, count in result.skipped.items()]
    trace.foreign = path
    trace.notes = (f"read as {result.format}", *skipped, *result.notes)
    weakref.finalize(trace, folder.cleanup)
    return trace
