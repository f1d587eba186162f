"""What lies on disk between two layers: hidden states and routing, and how far the run has come.

Hidden states are in two files, which a layer reads from and writes to by turns: a run that was
killed in the middle of a layer finds what went into it as it was. Both tell of the text, so none
but their owner may read them.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moeprof.errors import InputError, MoeprofError
from moeprof.trace.schema import FILE_MODE, FOLDER_MODE

STATE = "state.json"


class RowFile:
    """Rows of equal length in a file, read and written by their numbers."""

    def __init__(self, path: Path, row_bytes: int) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, FILE_MODE)
        self._path = path
        self._row_bytes = row_bytes

    def write(self, start: int, rows: NDArray[Any]) -> None:
        """From row `start` on. MoeprofError where the disk refuses."""
        view = np.ascontiguousarray(rows).view(np.uint8).reshape(-1).data
        at = start * self._row_bytes
        try:
            while view:
                written = os.pwrite(self._file, view[: 1 << 30], at)
                view, at = view[written:], at + written
        except OSError as error:
            raise _unwritable(self._path, error) from None

    def read(self, start: int, count: int) -> NDArray[np.uint8]:
        """`count` rows from `start` on, as bytes."""
        rows = np.empty(count * self._row_bytes, np.uint8)
        view, at = rows.data, start * self._row_bytes
        while view:
            read = os.preadv(self._file, [view[: 1 << 30]], at)
            if not read:
                raise MoeprofError(f"{self._path}: is cut off: remove its folder and start again")
            view, at = view[read:], at + read
        return rows

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)


def _unwritable(path: Path, error: OSError) -> MoeprofError:
    return MoeprofError(
        f"{path}: cannot be written: {error.strerror}; make room and run the same command again, "
        "it goes on at this layer"
    )


def held_bytes(folder: Path) -> int:
    """What the files of a run in `folder` take already."""
    return sum(path.stat().st_size for path in folder.iterdir()) if folder.is_dir() else 0


class Store:
    """The folder of a run. `rows` are bytes a token of each file that is kept a layer."""

    def __init__(
        self, folder: Path, signature: str, rows: Mapping[str, int], *, force: bool = False
    ) -> None:
        self.folder = folder
        self._signature = signature
        self._rows = dict(rows)
        self._files: dict[str, RowFile] = {}
        folder.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
        if force and self.state().get("signature", signature) != signature:
            (folder / STATE).unlink()
        self.done = self._find_done()

    def file(self, name: str, row_bytes: int | None = None) -> RowFile:
        """The file `name`, made where there is none."""
        if name not in self._files:
            self._files[name] = RowFile(self.folder / name, row_bytes or self._rows[name])
        return self._files[name]

    def finish_layer(self, layer: int, **known: Any) -> None:
        """All of `layer` is in the files."""
        self.done = layer + 1
        state = {"signature": self._signature, "done": self.done, **known}
        fresh = self.folder / f"{STATE}.new"
        try:
            fresh.touch(mode=FILE_MODE)
            fresh.write_text(json.dumps(state))
            fresh.replace(self.folder / STATE)
        except OSError as error:
            raise _unwritable(fresh, error) from None

    def state(self) -> dict[str, Any]:
        """What was known when the last layer was finished."""
        try:
            found = json.loads((self.folder / STATE).read_text())
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def close(self) -> None:
        """Close every file."""
        for file in self._files.values():
            file.close()
        self._files.clear()

    def remove(self) -> None:
        """Nothing of the run is wanted any more."""
        self.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _find_done(self) -> int:
        state = self.state()
        if state and state.get("signature") != self._signature:
            raise InputError(
                f"{self.folder} holds the beginning of another run (model, prompts or options "
                "differ): remove it, --force to replace it, or choose another output"
            )
        return int(state.get("done", 0))
