"""Experts that could go, be merged or be adapted, in words."""

from __future__ import annotations

from moeprof.analysis.pruning import AdapterTargets, MergeHints, PruningResult, PruningRow
from moeprof.report.text.layout import shortened, table, wrapped
from moeprof.report.wording import command, counted, held_bytes, percent

SHOWN = 6  # pairs, and domains
NAME = 14  # characters of a domain's name in a table


def pruning_text(result: PruningResult, label_parts: int | None = None) -> str:
    """What could go and what that costs, then pairs to merge and experts to adapt."""
    parts = [wrapped(_verdict(result)), _table(result)]
    unseen = "unseen: of the domain that loses most if the choice is made without it. "
    if all(row.unseen_coverage is None for row in result.rows):
        unseen = ""
    parts.append(
        wrapped(
            "kept: share of assignments to experts that stay, of tokens that the choice was not "
            f"made on. {unseen}pooled: as many go in all, wherever they are least used."
        )
    )
    parts += [_merge(result.merge)] if result.merge and result.merge.pairs else []
    parts += [_adapt(result.targets)] if result.targets else []
    parts.append(
        wrapped(
            "A recording tells which experts are asked, not what the model loses without them: "
            "measure its quality before and after."
        )
    )
    again = ["analyze", "pruning", result.trace, "--keep", str(result.suggested.kept)]
    again += ["--domain", result.domain] if result.domain else []
    again += ["--label-parts", str(label_parts)] if label_parts else []
    return "\n\n".join([*parts, f"Next, the ids of all of them: {command(*again, '--json')}"])


def _verdict(result: PruningResult) -> str:
    row, several = result.suggested, len(result.domains) > 1
    served = f" of {result.domain or 'all domains'}" if several else ""
    if not row.pruned:
        most = f", to {row.worst_domain} most" if several else ""
        return (
            f"No expert of every layer can go with 95 % of the routing{served} kept: the least "
            f"used matter too{most}."
        )
    worst = f", and {percent(row.worst_coverage)} of that of {row.worst_domain}, which loses most"
    return (
        f"{row.pruned} of {result.experts} experts of each layer could go: {percent(row.coverage)} "
        f"of the routing{served} stays as it is, on {result.judged_on}{worst if several else ''}. "
        f"{percent(row.by_chance)} if chosen blindly.{_saved(row, result)}"
    )


def _saved(row: PruningRow, result: PruningResult) -> str:
    if row.bytes_saved is None:
        return ""
    return f" Saves {held_bytes(row.bytes_saved)} in {result.format}."


def _table(result: PruningResult) -> str:
    weighted = any(row.gate_weight is not None for row in result.rows)
    unseen = any(row.unseen_coverage is not None for row in result.rows)
    several = len(result.domains) > 1
    columns = ["gone", "kept", "by chance", "pooled"]
    columns += ["worst domain", ""] if several else []
    columns += ["unseen", ""] if unseen else []
    columns += ["gate weight"] if weighted else []
    keys: dict[str, str] = {}  # of long names, which stand below the table

    def name(domain: str) -> str:
        return domain if len(domain) <= NAME else keys.setdefault(domain, f"({len(keys) + 1})")

    rows = []
    for row in result.rows:
        cells: list[object] = [
            row.pruned,
            percent(row.coverage),
            percent(row.by_chance),
            percent(row.pooled),
        ]
        cells += [percent(row.worst_coverage), name(row.worst_domain)] if several else []
        if unseen:
            cells += [percent(row.unseen_coverage or 0), name(row.unseen_domain or "")]
        cells += [percent(row.gate_weight or 0)] if weighted else []
        rows.append(cells)
    named = [f"{key} {shortened(domain, 76)}" for domain, key in keys.items()]
    return "\n".join([table(columns, rows, left=0), *named])


def _merge(merge: MergeHints) -> str:
    rows = [
        [
            pair.layer,
            f"{pair.experts[0]}, {pair.experts[1]}",
            f"{pair.similarity:.2f}",
            f"{pair.together:.2f}",
            f"{percent(pair.load[0])}, {percent(pair.load[1])}",
        ]
        for pair in merge.pairs[:SHOWN]
    ]
    head = (
        f"Pairs to look at for merging: chosen in like contexts (similarity 1 the same; two "
        f"experts of a layer typically have {merge.typical:.2f}, 1 in 100 above {merge.high:.2f})."
    )
    columns = ["layer", "experts", "similarity", "together / chance", "load"]
    return wrapped(head) + "\n" + table(columns, rows, left=0)


def _adapt(targets: list[AdapterTargets]) -> str:
    rows = [
        [
            shortened(found.domain, 32),
            f"{found.experts:,}",
            percent(found.of_experts),
            "-" if found.held_out is None else percent(found.held_out),
            "-" if found.elsewhere is None else percent(found.elsewhere),
        ]
        for found in targets[:SHOWN]
    ]
    first = targets[0]
    by = "gate weight" if first.score == "gate" else "assignments"
    head = (
        f"Experts to adapt (LoRA, ESFT): those that reach {percent(first.share)} of a domain's "
        f"{by} in each layer, and what they get on requests held out."
    )
    columns = ["domain", "experts", "of all", "its routing", "others' routing"]
    more = f"\n{counted(len(targets), 'domain')} in all." if len(targets) > SHOWN else ""
    return wrapped(head) + "\n" + table(columns, rows) + more
