"""What the ranks of a server say, as one answer."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

SUMMED = ("tokens", "prefill_tokens", "decode_tokens", "sampled_out", "rotated")
_RANK_FOLDER = re.compile(r"/ranks/dp\d+-pp\d+-tp\d+/?$")


def summarize(ranks: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Counts of tokens over the ranks that write; the ranks themselves under "ranks".

    `recording` is whether any of them still records, `steps` that of the rank that has most.
    """
    writing = [rank for rank in ranks if rank.get("writes", True)]
    dropped: Counter[str] = Counter()
    for rank in writing:
        dropped.update(rank.get("dropped") or {})
    return {
        "recording": any(rank.get("recording") for rank in writing),
        "path": _common_path([rank["path"] for rank in writing if rank.get("path")]),
        **{name: sum(rank.get(name) or 0 for rank in writing) for name in SUMMED},
        "steps": max((rank.get("steps") or 0 for rank in writing), default=0),
        "dropped": dict(sorted(dropped.items())),
        "errors": [f"{rank_name(r)}: {r['error']}" for r in ranks if r.get("error")],
        "ranks": list(ranks),
    }


def rank_name(rank: dict[str, Any]) -> str:
    """'dp00-pp00-tp01', as the folders of ranks are called."""
    place = rank.get("rank") or {}
    return "-".join(f"{axis}{place.get(axis, 0):02d}" for axis in ("dp", "pp", "tp"))


def _common_path(paths: Sequence[str]) -> str | None:
    """The trace that the ranks' paths belong to: `T`, or `T/ranks/...` of each."""
    heads = {_RANK_FOLDER.sub("", path) for path in paths}
    return heads.pop() if len(heads) == 1 else None
