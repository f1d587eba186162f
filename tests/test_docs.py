"""Every page of docs/ can be found from the README, and what pages point at is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    *sorted(p for f in ("docs", "benchmarks") for p in (ROOT / f).rglob("*.md")),
]
LINK = re.compile(r"\]\((?!https?://|mailto:)([^)#\s]*)(?:#([^)\s]+))?\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """As GitHub makes them of headings."""
    names = (re.sub(r"[^\w\- ]", "", name.lower()) for name in HEADING.findall(page.read_text()))
    return {name.replace(" ", "-") for name in names}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for place, anchor in LINK.findall(page.read_text()):
        target = (page.parent / place).resolve() if place else page
        assert target.exists(), f"{page.name}: {place}"
        if anchor and target.suffix == ".md":
            assert anchor in anchors(target), f"{page.name}: {place}#{anchor}"


def test_every_page_is_reached_from_the_readme() -> None:
    seen, waiting = set(), [PAGES[0]]
    while waiting:
        page = waiting.pop()
        seen.add(page)
        links = (
            (page.parent / place).resolve() for place, _ in LINK.findall(page.read_text()) if place
        )
        waiting += [link for link in links if link.suffix == ".md" and link not in seen]
    docs = [page for page in PAGES if page.is_relative_to(ROOT / "docs")]
    assert [str(page.relative_to(ROOT)) for page in docs if page not in seen] == []
