"""What is in a trace."""

from __future__ import annotations

from moeprof.report.sampled import rotated_words, sampled_words
from moeprof.report.text.layout import pairs, wrapped
from moeprof.report.wording import as_next, command, counted, held_bytes
from moeprof.trace import TraceInfo


def trace_info_text(info: TraceInfo) -> str:
    """Contents of a trace, then what is wrong with it."""
    values = {
        "trace": info.path,
        "model": info.model,
        "engine": info.engine or "not stated",
        "tokens": _tokens(info),
        **_ranks(info),
        "dropped": _dropped(info),
        **_left_behind(info),
        "steps": _of_tokens(info, f"{info.steps:,}"),
        "requests": _of_tokens(info, f"{info.requests:,}{_named(info)}"),
        "labels": ", ".join(f"{name} ({n:,})" for name, n in info.labels.items()) or "none",
        "routing": f"{info.layers} MoE layers, top-{info.top_k} of {info.experts} experts",
        "recorded": _recorded(info),
        "size": held_bytes(info.bytes) if info.bytes else "in memory",
        "complete": "yes" if info.complete else "no, the recording was cut off",
    }
    if not info.problems:
        return pairs(values)
    head = f"{counted(len(info.problems), 'problem')}:"
    problems = [wrapped(problem, "    ", "  - ") for problem in info.problems]
    return "\n".join([pairs(values), "", head, *problems])


def described_trace_text(info: TraceInfo) -> str:
    """The same, and the commands that answer from it."""
    following = [command("analyze", "load", info.path)]
    if info.counts_only:
        following.append(command("place", info.path, "--gpus", 8))
    else:
        following.append(command("analyze", "locality", info.path))
    if len(info.labels) > 1 and not info.counts_only:
        following.append(command("analyze", "specialization", info.path))
    following.append(command("report", info.path, "-o", "report.html"))
    return "\n".join([trace_info_text(info), "", *as_next(following)])


def validated_trace_text(info: TraceInfo) -> str:
    """The same with the verdict of its checks."""
    told = trace_info_text(info)
    if info.problems:
        return told
    fine = "No problem found: checksums, sizes, ids, steps and positions are as they should be."
    return f"{told}\n\n{fine}"


def _tokens(info: TraceInfo) -> str:
    if info.counts_only and info.aggregate_steps is None:
        return "counts only"
    tokens = f"{info.tokens:,} ({info.prefill_tokens:,} prefill, {info.decode_tokens:,} decode)"
    if info.aggregate_steps is None:
        return tokens
    windows = counted(info.windows, "window")
    return f"{tokens}, counts only: {windows} of {info.aggregate_steps:,} steps"


def _of_tokens(info: TraceInfo, told: str) -> str:
    """What only a recording of single tokens tells."""
    return "not kept: counts only" if info.counts_only else told


def _named(info: TraceInfo) -> str:
    """Whether requests have names, and of which kind."""
    kinds = {"hashed": ", with hashes of the engine's ids", "plain": ", with the engine's ids"}
    return kinds.get(info.request_names, "")


def _ranks(info: TraceInfo) -> dict[str, str]:
    """Which ranks it was joined of, where it was."""
    if not info.ranks:
        return {}
    missing = f"; missing: {', '.join(info.missing_ranks)}" if info.missing_ranks else ""
    return {"ranks": f"{len(info.ranks)} ({', '.join(info.ranks)}){missing}"}


def _dropped(info: TraceInfo) -> str:
    reasons = ", ".join(f"{n:,} {reason}" for reason, n in info.dropped.items())
    return reasons or "0"


def _left_behind(info: TraceInfo) -> dict[str, str]:
    """What a size limit and a sampler took away, where there was one."""
    lines = {}
    if info.rotated_tokens:
        lines["rotated"] = rotated_words(info)
    if info.sampling:
        lines["sampled"] = f"{sampled_words(info)}, {info.tokens_sampled_out:,} tokens left out"
        if "share_error" in info.sampling:
            error = f"{info.sampling['share_error']:.1%} (standard error, mean of experts)"
            lines["sampled"] += f"; an expert's load is known to {error}"
    return lines


def _recorded(info: TraceInfo) -> str:
    """Which optional columns the trace has."""
    order = {True: "in order of rank", False: "not in order of rank", None: "rank order not known"}
    parts = [f"expert ids ({order[info.rank_ordered]})"]
    parts += ["gate weights"] if info.weights else []
    parts += ["token ids"] if info.token_ids else []
    parts += ["margins"] if info.margins else []
    parts += ["the next layer's choices"] if info.next_layer else []
    return ", ".join(parts)
