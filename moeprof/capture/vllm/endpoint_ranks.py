"""What the ranks of a server say, as one answer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from moeprof.trace.ranks import Rank
from moeprof.trace.schema import RANKS

COUNTS = ("tokens", "prefill_tokens", "decode_tokens", "sampled_out", "rotated")


def summarize(ranks: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Counts of tokens over the ranks that write; the ranks themselves under "ranks".

    Pipeline stages see the same tokens, so of them the one that counts most is taken. `recording`
    is whether any rank still records, `closing` whether one still writes what it has.
    """
    writing = [rank for rank in ranks if rank.get("writes", True)]
    return {
        "recording": any(rank.get("recording") for rank in writing),
        "closing": any(rank.get("closing") for rank in writing),
        "path": _common_path([rank["path"] for rank in writing if rank.get("path")]),
        **{name: _total(writing, name) for name in COUNTS},
        "steps": max((rank.get("steps") or 0 for rank in writing), default=0),
        "dropped": _dropped(writing),
        "errors": [f"{rank_name(r)}: {r['error']}" for r in writing if r.get("error")],
        "ranks": list(ranks),
    }


def rank_name(rank: dict[str, Any]) -> str:
    """'dp00-pp00-tp01', as the folders of ranks are called."""
    place = rank.get("rank") or {}
    return str(Rank(*(place.get(axis, 0) for axis in Rank._fields)))


def _total(ranks: Iterable[dict[str, Any]], name: str) -> int:
    """The sum of a count over ranks; over pipeline stages of the same tokens, the largest."""
    largest: dict[tuple[int, int], int] = {}
    for rank in ranks:
        place = rank.get("rank") or {}
        key = (place.get("dp", 0), place.get("tp", 0))
        largest[key] = max(largest.get(key, 0), rank.get(name) or 0)
    return sum(largest.values())


def _dropped(ranks: Sequence[dict[str, Any]]) -> dict[str, int]:
    """Tokens dropped by reason, counted as all others are."""
    counts = [{**(rank.get("dropped") or {}), "rank": rank.get("rank")} for rank in ranks]
    reasons = sorted({reason for rank in counts for reason in rank} - {"rank"})
    return {reason: _total(counts, reason) for reason in reasons}


def _common_path(paths: Sequence[str]) -> str | None:
    """The trace that the ranks' paths belong to: `T`, or `T/ranks/...` of each."""
    folders = [Path(path) for path in paths]
    heads = {str(f.parents[1] if f.parent.name == RANKS else f) for f in folders}
    return heads.pop() if len(heads) == 1 else None
