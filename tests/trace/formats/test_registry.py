"""Every format has its line in the documentation, and a name of its own."""

from __future__ import annotations

from pathlib import Path

from moeprof.trace.formats import EXPORTS, format_names
from tests.trace.formats.files import imported

DOCS = Path(__file__).parents[3] / "docs" / "formats.md"


def test_every_format_is_documented() -> None:
    text = DOCS.read_text()
    assert len(set(format_names())) == len(format_names())
    for name in [*format_names(), *EXPORTS]:
        assert f"`{name}`" in text


def test_the_examples_of_the_documentation_can_be_imported(tmp_path: Path) -> None:
    blocks = [text.split("```")[0] for text in DOCS.read_text().split("```text\n")[1:]]
    assert len(blocks) == 2
    for name, text, layers in zip(("csv", "jsonl"), blocks, ((3, 4), (1, 2)), strict=True):
        file = tmp_path / f"example.{name}"
        file.write_text(text)
        trace, result = imported(file, tmp_path / name)
        assert (result.format, trace.layers, trace.tokens) == (name, layers, 1)
        assert trace.phase.tolist() == [0] and trace.position.tolist() == [0]


def test_tokens_without_any_layer_are_counted(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"experts": [[-1, -1]]}\n' * 3 + '{"experts": [[4, 5]]}\n')
    for keep in (False, True):
        trace, result = imported(file, tmp_path / str(keep), keep_warmup=keep)
        assert trace.tokens == 1 and result.skipped == {"token without a recorded layer": 3}
