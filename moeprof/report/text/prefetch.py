"""What fetching ahead saved and cost."""

from __future__ import annotations

from moeprof.cache import Scope
from moeprof.cache.prefetch import PREDICTORS, PrefetchReplay, PrefetchReplays
from moeprof.report.text.layout import table, wrapped
from moeprof.report.wording import counted, percent, read_bytes

_ENDS = ("useful", "late", "wasted", "dropped", "polluting")


def prefetch_text(replays: PrefetchReplays) -> str:
    """A row a predictor and size, what became of the fetches, and the rules."""
    tokens = counted(
        replays.tokens, "token" if replays.phase == "all" else f"{replays.phase} token"
    )
    scope = "in all" if replays.rows[0].scope is Scope.GLOBAL else "per layer"
    head = (
        f"{tokens} in {replays.steps:,} steps, after {replays.fit_steps:,} steps that were learned "
        f"on; {counted(replays.width, 'expert')} named {counted(replays.lookahead, 'layer')} "
        f"ahead, policy {replays.rows[0].policy}, slots {scope}"
    )
    if replays.max_num_seqs is not None:
        head += f", {counted(replays.max_num_seqs, 'request')} at a time"
    return "\n\n".join(
        [
            wrapped(f"{head}."),
            table(_columns(replays), (_row(row, replays) for row in replays.rows)),
            wrapped("Of the fetches asked for, a token:"),
            table(
                ["predictor", "slots", *_ENDS],
                (_ends(row, replays) for row in replays.rows if row.prefetched),
            ),
            *_rules(replays),
        ]
    )


def _columns(replays: PrefetchReplays) -> list[str]:
    waits = ["waits/token"] if replays.link_experts_per_layer else []
    return ["predictor", "slots", "hits", "precision", "recall", "moved/token", *waits]


def _row(row: PrefetchReplay, replays: PrefetchReplays) -> list[str]:
    shares = ["-" if share is None else percent(share) for share in (row.precision, row.recall)]
    cells = [row.predictor, f"{row.slots:,}", percent(row.hit_ratio), *shares, _moved(row, replays)]
    if row.stall_ms_per_token is not None:
        cells.append(f"{row.stall_ms_per_token.value:,.3g} ms")
    elif replays.link_experts_per_layer:
        cells.append(f"{row.stall_layers_per_token:,.3g} layers")
    return cells


def _moved(row: PrefetchReplay, replays: PrefetchReplays) -> str:
    if row.bytes_per_token is not None:
        return read_bytes(row.bytes_per_token)
    moved = row.misses - row.late + row.prefetched - row.dropped
    return f"{moved / replays.tokens:,.3g} experts"


def _ends(row: PrefetchReplay, replays: PrefetchReplays) -> list[str]:
    ends = (row.useful, row.late, row.wasted + row.unused, row.dropped, row.polluting)
    return [row.predictor, f"{row.slots:,}", *(f"{end / replays.tokens:.3g}" for end in ends)]


def _rules(replays: PrefetchReplays) -> list[str]:
    rate = replays.link_experts_per_layer
    if rate is None:
        words = "The link takes no time: nothing is late, and layers wait for nothing."
    else:
        words = (
            f"While a layer computes, {rate.value:,.3g} experts come ({rate.provenance}: "
            f"{rate.source}); what is under way is finished first, then come misses, then fetches "
            "ahead in order."
        )
    names = dict.fromkeys(row.predictor for row in replays.rows)
    said = [f"{name}: {PREDICTORS[name].words}." for name in names if name in PREDICTORS]
    ends = (
        "Useful: there when first needed. Late: needed before it was, so a miss. Wasted: evicted "
        "or left over unused. Dropped: never begun. Polluting: misses of what a prefetch evicted "
        "for something that was not used since."
    )
    said += [f"Left out, {name}: {why}." for name, why in replays.left_out.items()]
    return [wrapped(words), wrapped(ends), *(wrapped(line, indent="  ", first="") for line in said)]
