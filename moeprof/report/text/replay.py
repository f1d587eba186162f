"""Cache replays and verdicts."""

from __future__ import annotations

from moeprof.cache import CacheReplay, CacheReplays, CacheVerdict, Scope
from moeprof.report.text.layout import pairs, table, wrapped
from moeprof.report.wording import counted, percent, read_bytes

_SLOTS = {Scope.LAYER: "slots/layer", Scope.GLOBAL: "slots in all", Scope.QUOTA: "mean slots"}


def replays_text(replays: CacheReplays) -> str:
    """A row a policy and size, then what was counted and under what rules."""
    tokens = counted(
        replays.tokens, "token" if replays.phase == "all" else f"{replays.phase} token"
    )
    head = f"{tokens}, {replays.rows[0].accesses:,} expert reads in {replays.steps:,} steps"
    head += f", {replays.experts_per_event:,.3g} experts a step and layer"
    if replays.max_num_seqs is not None:
        head += f" of {counted(replays.max_num_seqs, 'request')} at a time"
    if replays.fit_steps:
        head += f", after {replays.fit_steps:,} steps that were replayed and not counted"
    contracts = len(replays.contracts) > 1
    equal = replays.rows[0].equal_hit_ratio is not None
    columns = ["policy", _SLOTS[replays.rows[0].scope], "hits"]
    columns += ["equal slots"] * equal + ["misses/token"]
    columns += [f"{replays.precision}/token"] + ["contract"] * contracts
    rows = [_row(row, replays, contracts) for row in replays.rows]
    rules = [wrapped(f"Contract {rule.name}: {rule.words}.") for rule in replays.contracts]
    shared = [_shared_out(row, replays) for row in replays.rows[:1] if row.quotas]
    return "\n\n".join(
        [wrapped(f"{head}."), table(columns, rows), *shared, *rules, _cycle(replays)]
    )


def _shared_out(row: CacheReplay, replays: CacheReplays) -> str:
    """Who got most of the first size, and how good the division is."""
    quotas = row.quotas or []
    text = (
        f"Shared out on the first {counted(replays.fit_steps, 'step')}: {min(quotas)} to "
        f"{max(quotas)} slots a layer, in order {', '.join(map(str, quotas))}"
    )
    if row.quotas_short_by:
        text += f"; the best division has at most {row.quotas_short_by:,} hits more there"
    return wrapped(f"{text}.")


def _row(row: CacheReplay, replays: CacheReplays, contracts: bool) -> list[str]:
    read = "-" if row.bytes_per_token is None else read_bytes(row.bytes_per_token)
    hits = "cliff" if _near_cliff(row, replays) else percent(row.hit_ratio)
    equal = [] if row.equal_hit_ratio is None else [percent(row.equal_hit_ratio)]
    cells = [row.policy, f"{row.slots:,}", hits, *equal, f"{row.misses_per_token:,.3g}"]
    return [*cells, read] + [row.contract] * contracts


def _near_cliff(row: CacheReplay, replays: CacheReplays) -> bool:
    """Whether a slot decides: a global recency policy between the first hit and one cycle."""
    cycle = replays.hitless_slots < row.slots <= replays.token_cycle
    return row.scope is Scope.GLOBAL and row.policy in ("lru", "fifo", "clock") and cycle


def _cycle(replays: CacheReplays) -> str:
    each = replays.token_cycle // replays.layers
    return wrapped(
        f"Token cycle: {replays.token_cycle:,} slots in all, {each} a layer, are what one token "
        "uses."
    )


def verdict_text(verdict: CacheVerdict) -> str:
    """The sentences, then the figures."""
    slots = "in all" if verdict.scope is Scope.GLOBAL else "per layer"
    figures = {
        "slots": f"{verdict.slots:,} {slots}, {verdict.cycles:.2f} token cycles",
        verdict.policy: percent(verdict.hit_ratio),
        "optimum (belady-bypass)": percent(verdict.optimum),
    }
    if verdict.gib_bytes_per_token is not None:
        figures["one GiB more saves LRU"] = (
            f"{verdict.gib_misses_per_token:,.3g} misses and "
            f"{read_bytes(verdict.gib_bytes_per_token)} a token"
        )
    if verdict.gib_misses_by_layer:
        saved = verdict.gib_misses_by_layer
        best = max(saved, key=lambda layer: saved[layer])
        least = min(saved, key=lambda layer: saved[layer])
        figures["in one layer alone"] = (
            f"{saved[best]:,.3g} misses a token in layer {best}, the most, and {saved[least]:,.3g} "
            f"in layer {least}, the least"
        )
    return "\n\n".join([wrapped(verdict.words), pairs(figures)])
