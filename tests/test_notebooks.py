"""The notebooks as they are stored, and that their check can fail; CI runs them."""

from __future__ import annotations

import base64
import importlib.util
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import moeprof

FOLDER = Path(__file__).parents[1] / "notebooks"
pytest.importorskip("nbclient", reason="needs the extra 'dev'")


@pytest.fixture(scope="module")
def run() -> Any:
    """The module notebooks/run.py."""
    spec = importlib.util.spec_from_file_location("run_notebooks", FOLDER / "run.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.ipynb")), ids=lambda path: path.stem)
def test_a_notebook_asks_answers_and_uses_what_is_public(path: Path) -> None:
    cells = json.loads(path.read_text())["cells"]
    texts = ["".join(cell["source"]) for cell in cells]
    assert re.match(r"# .*\n\n\*\*[^*]+\?\*\*", texts[0])
    assert "tiny-m3 is not\nMiniMax-M3" in texts[0] or "not MiniMax-M3" in texts[0]
    assert "## Answer" in texts[-3:]
    assert all(cell["execution_count"] for cell in cells if cell["cell_type"] == "code")
    code = "\n".join(
        text for text, cell in zip(texts, cells, strict=True) if cell["cell_type"] == "code"
    )
    assert "from moeprof" not in code and "import moeprof\n" in code
    assert set(re.findall(r"\bmoeprof\.(\w+)", code)) <= {*moeprof.__all__, "__file__"}
    assert "stderr" not in {output.get("name") for c in cells for output in c.get("outputs", [])}


@pytest.mark.parametrize(
    ("old", "new", "same"),
    [
        ("1,736 tokens, 19%", "1,736 tokens, 19%", True),
        ("0.4251 bits", "0.4252 bits", True),
        ("0.42 bits", "0.45 bits", False),
        ("lru with 32", "lfu with 32", False),
        ("8 layers", "8 layers, 7", False),
    ],
)
def test_words_are_the_same_and_numbers_nearly(run: Any, old: str, new: str, same: bool) -> None:
    assert run.same_text(old, new) == same


def png(shade: int, width: int = 40) -> dict[str, str]:
    file = io.BytesIO()
    Image.fromarray(np.full((30, width), shade, np.uint8)).save(file, "PNG")
    return {"image/png": base64.b64encode(file.getvalue()).decode()}


def test_pictures_are_compared_by_pixels(run: Any) -> None:
    assert run.same_picture(png(100), png(101))
    assert not run.same_picture(png(100), png(140))
    assert not run.same_picture(png(100), png(100, width=41))
    assert not run.same_picture(png(100), {})


def test_what_is_printed_in_pieces_is_one_output(run: Any) -> None:
    from nbformat.v4 import new_code_cell, new_notebook, new_output

    def notebook(*texts: str, name: str = "stdout") -> Any:
        outputs = [new_output("stream", name=name, text=text) for text in texts]
        return new_notebook(cells=[new_code_cell("...", outputs=run.joined(outputs), id="a")])

    assert run.differences(notebook("a 1\nb"), notebook("a 1\n", "b")) == []
    assert len(run.differences(notebook("a 1\nb"), notebook("a 1\n"))) == 1
    assert len(run.differences(notebook("a"), notebook())) == 1
    assert len(run.differences(notebook("a", name="stderr"), notebook("a", name="stderr"))) == 1
