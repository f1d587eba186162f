"""Every format has its line in the documentation, and a name of its own."""

from __future__ import annotations

from pathlib import Path

from moeprof.trace.formats import EXPORTS, format_names

DOCS = Path(__file__).parents[3] / "docs" / "formats.md"


def test_every_format_is_documented() -> None:
    text = DOCS.read_text()
    assert len(set(format_names())) == len(format_names())
    for name in [*format_names(), *EXPORTS]:
        assert f"`{name}`" in text
