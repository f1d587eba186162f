"""Where the page comes from: recording, model, engine, files and their checksums."""

from __future__ import annotations

from datetime import UTC, datetime

from moeprof.report.blocks import Section, Table
from moeprof.report.contents import ReportContents
from moeprof.report.sampled import error_words, rotated_words, sampled_words
from moeprof.report.wording import held_bytes


def origin_section(contents: ReportContents) -> Section:
    """The facts that a reader needs to make this page again."""
    blocks = [Table("Recording", ["what", "value"], _facts(contents), open=True)]
    if contents.files:
        rows = [[f.file, f"{f.rows:,}", f"{f.bytes:,}", f.crc32] for f in contents.files]
        blocks.append(Table("Files of the recording", ["file", "rows", "bytes", "CRC-32"], rows))
    if contents.deployments:
        blocks.append(
            Table("Sources of the memory figures", ["figure", "source"], _sources(contents))
        )
    return Section("origin", "Provenance", [], blocks)


def _facts(contents: ReportContents) -> list[list[str]]:
    info, model = contents.info, contents.recorded
    facts = {
        "recording": info.path,
        "recorded model": f"{model.name} ({model.model_type})",
        "layers": f"{model.layers}, of which {len(model.moe_layers)} route and {info.layers} "
        "recorded",
        "experts": f"{info.experts} a layer, top-{info.top_k}",
        "engine": info.engine or "not stated",
        "recorded at": _time(contents.recorded_at_s),
        "recorded by": f"moeprof {contents.recorded_by}" if contents.recorded_by else "not stated",
        "order of the chosen experts": _order(info.rank_ordered),
        **_left_behind(contents),
        "size": held_bytes(info.bytes) if info.bytes else "in memory",
        "projected model": contents.target.name,
        "hardware": f"{contents.cluster.name} ({contents.cluster.profile.title})",
        "report": f"moeprof {contents.version}",
        "command": contents.command or "not stated",
    }
    return [[name, value] for name, value in facts.items()]


def _left_behind(contents: ReportContents) -> dict[str, str]:
    """What a sampler and a size limit took away, where there was one."""
    info, facts = contents.info, {}
    if info.sampling:
        facts["sampling"] = f"{sampled_words(info)}. {error_words(contents.sampling)}"
    if info.rotated_tokens:
        facts["rotation"] = rotated_words(info)
    return facts


def _time(unix_s: float) -> str:
    if unix_s <= 0:
        return "not stated"
    return datetime.fromtimestamp(unix_s, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _order(rank_ordered: bool | None) -> str:
    if rank_ordered is None:
        return "not known"
    return "the router's first choice first" if rank_ordered else "not the router's"


def _sources(contents: ReportContents) -> list[list[str]]:
    rows = []
    for deployment in contents.deployments:
        ledger = deployment.ledger
        rows.append([f"{ledger.precision.upper()} weights", ledger.classes["routed"].source])
    ledger = contents.deployments[0].ledger
    rows += [
        ["card", ledger.capacity.source],
        ["bandwidth", contents.cluster.profile.memory_bandwidth.source],
        ["reserve", ledger.classes["reserve"].source],
        ["KV a token", ledger.classes["kv"].source],
    ]
    return rows
