"""What other policies hit than LRU, in either scope, and what the optimum leaves to gain."""

from __future__ import annotations

from moeprof.cache import CacheReplays, Scope
from moeprof.report.blocks import Block, Section, Table
from moeprof.report.charts import SHARE, Chart, Mark, Measure, Series
from moeprof.report.contents import ReportContents
from moeprof.report.policies import PolicyCurve, curves_of, most_tokens
from moeprof.report.wording import count, percent, read_bytes

HUES = ("a", "b", "c")
SCOPES = {Scope.LAYER: "slots in every layer", Scope.GLOBAL: "one pool for all layers"}


def policies_section(contents: ReportContents) -> Section | None:
    """A plot a scope, and every row in a table."""
    title = "Cache policies"
    if not contents.policies:
        reason = contents.missing.get("policies")
        return Section("policies", title, [f"Not shown: {reason}."], []) if reason else None
    first = next(iter(contents.policies.values()))
    kind = "tokens" if first.phase == "all" else f"{first.phase} tokens"
    lead = [
        f"Replayed over the later {count(first.tokens)} {kind}, with caches warm from the "
        f"{count(first.fit_steps)} steps before, on which the static list was fitted. The optimum "
        "(belady-bypass) knows the future: what lies between it and a policy is that policy's to "
        "gain, what lies above it no policy can.",
        f"A step of this recording needs {first.experts_per_event:.3g} experts in a layer. In one "
        "pool for all layers that holds less than a whole step needs, LRU finds next to nothing: "
        "each expert goes before its layer comes round again.",
    ]
    there = contents.info.tokens if first.phase == "all" else contents.info.decode_tokens
    most = most_tokens(first.layers)
    if there > most:
        lead.append(
            f"The recording has {count(there)} {kind}. Steps in its middle that hold about "
            f"{count(most)} of them are replayed here, the earlier half to warm up and to fit."
        )
    plots: list[Block] = [_plot(scope, replays) for scope, replays in contents.policies.items()]
    tables = [_table(scope, replays) for scope, replays in contents.policies.items()]
    return Section("policies", title, lead, [*plots, *tables])


def _plot(scope: Scope, replays: CacheReplays) -> Chart:
    experts, curves = pool_size(replays), curves_of(replays)
    return Chart(
        id=f"policies-{scope}",
        title=f"Hit ratio by policy, {SCOPES[scope]}",
        alt="; ".join(_summary(curve) for curve in curves) + ". Numbers in the tables below.",
        x=Measure("share of all experts resident", SHARE, start=0, end=1),
        y=Measure("hit ratio", SHARE, start=0, end=1),
        series=[
            Series(
                curve.policy,
                hue,
                [(0.0, 0.0), *curve.points(experts)],
                words=["no slots", *(f"{row.slots:,} slots" for row in curve.rows)],
            )
            for curve, hue in zip(curves, HUES, strict=True)
        ],
        marks=[Mark(slots / experts, words) for slots, words in cycles(replays)],
        caption="Sizes between those replayed are joined by straight lines.",
    )


def pool_size(replays: CacheReplays) -> int:
    """Experts that share the slots of a row."""
    pooled = replays.rows[0].scope is Scope.GLOBAL
    return replays.experts * (replays.layers if pooled else 1)


def cycles(replays: CacheReplays) -> list[tuple[float, str]]:
    """(slots, words) of what one token uses, and of what one step does where that is more."""
    pooled = replays.rows[0].scope is Scope.GLOBAL
    token = replays.token_cycle // (1 if pooled else replays.layers)
    step = replays.experts_per_event * (replays.layers if pooled else 1)
    marks = [(float(token), f"token cycle: {token}")]
    return marks if step < 1.5 * token else [*marks, (step, f"one step: {step:.0f}")]


def _summary(curve: PolicyCurve) -> str:
    return f"{curve.policy} from {percent(curve.rows[0].hit_ratio)} at {curve.rows[0].slots} slots"


def _table(scope: Scope, replays: CacheReplays) -> Table:
    contract = replays.contracts[0]
    return Table(
        title=f"Policies, {SCOPES[scope]}",
        columns=["policy", "slots", "hit ratio", "misses a token", "BF16 bytes a token"],
        rows=[
            [
                row.policy,
                f"{row.slots:,}",
                percent(row.hit_ratio),
                f"{row.misses_per_token:,.3g}",
                "-" if row.bytes_per_token is None else read_bytes(row.bytes_per_token),
            ]
            for row in replays.rows
        ],
        note=f"Contract {contract.name}: {contract.words}.",
    )
