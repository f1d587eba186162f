"""Runs notebooks from top to bottom, each in a fresh kernel, and stores what they print and draw.

    python notebooks/run.py                     # all of them
    python notebooks/run.py --check 01-*.ipynb  # store nothing; fail where another output comes

Nothing may be written to stderr. Words must be the same; numbers may differ by 1 % and pictures by
a shade, since another processor or another Matplotlib rounds differently.
"""

from __future__ import annotations

import argparse
import base64
import io
import math
import re
import sys
from itertools import zip_longest
from pathlib import Path
from typing import Any

import nbformat
from matplotlib.image import imread
from nbclient import NotebookClient

HERE = Path(__file__).parent
NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?")


def execute(path: Path) -> Any:
    """The notebook with fresh outputs. An exception in a cell is raised here."""
    notebook = nbformat.read(path, as_version=4)
    place = {"metadata": {"path": str(path.parent)}}
    NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources=place, record_timing=False
    ).execute()
    notebook.metadata.pop("language_info", None)  # names the version of Python
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = joined(cell.outputs)
    return notebook


def joined(outputs: list[Any]) -> list[Any]:
    """What was printed in one go comes in as many pieces as the kernel happens to send."""
    whole: list[Any] = []
    for output in outputs:
        if whole and output.output_type == "stream" and output.get("name") == whole[-1].get("name"):
            whole[-1].text += output.text
        else:
            whole.append(output)
    return whole


def differences(stored: Any, fresh: Any) -> list[str]:
    """What is not in `stored` as it came out in `fresh`, by cell."""
    pairs = zip(stored.cells, fresh.cells, strict=True)
    return [
        f"cell {cell.id}: {problem}"
        for old, cell in pairs
        if cell.cell_type == "code"
        for problem in map(difference, *padded(old.outputs, cell.outputs))
        if problem
    ]


def padded(old: list[Any], new: list[Any]) -> tuple[tuple[Any, ...], ...]:
    """Both, the shorter one filled up with None."""
    return tuple(zip(*zip_longest(old, new), strict=True)) or ((), ())


def difference(old: Any, new: Any) -> str:
    """What is wrong with an output; empty if nothing is."""
    if old is None or new is None or old.output_type != new.output_type:
        return "another number of outputs, or another kind"
    if new.output_type == "stream":
        if new.name == "stderr":
            return f"stderr: {new.text}"
        return "" if same_text(old.text, new.text) else f"printed\n{new.text}\nstored\n{old.text}"
    if not same_text(old.data.get("text/plain", ""), new.data.get("text/plain", "")):
        return f"{new.data['text/plain']} instead of {old.data.get('text/plain')}"
    return "" if same_picture(old.data, new.data) else "another picture"


def same_text(old: str, new: str) -> bool:
    """The same words, and numbers within 1 %."""
    numbers = [[float(n.replace(",", "")) for n in NUMBER.findall(text)] for text in (old, new)]
    same_words = NUMBER.sub("#", old) == NUMBER.sub("#", new)
    return same_words and all(
        math.isclose(a, b, rel_tol=0.01) for a, b in zip(*numbers, strict=True)
    )


def same_picture(old: Any, new: Any) -> bool:
    """Both none, or of one size with nearly the same pixels."""
    if "image/png" not in old or "image/png" not in new:
        return ("image/png" in old) == ("image/png" in new)
    a, b = (imread(io.BytesIO(base64.b64decode(data["image/png"]))) for data in (old, new))
    return a.shape == b.shape and float(abs(a - b).mean()) < 0.01


def main() -> int:
    """0 if all is well."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="store nothing, compare")
    parser.add_argument("files", nargs="*", type=Path, default=sorted(HERE.glob("*.ipynb")))
    options = parser.parse_args()
    failed = 0
    for path in options.files:
        fresh = execute(path)
        if options.check:
            found = differences(nbformat.read(path, as_version=4), fresh)
            failed |= bool(found)
            print(f"{path.name}: {len(found) or 'no'} differences", *found, sep="\n")
        else:
            nbformat.write(fresh, path)
            print(f"{path.name}: stored")
    return failed


if __name__ == "__main__":
    sys.exit(main())
