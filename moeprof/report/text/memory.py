"""The memory ledger of a deployment, in full."""

from __future__ import annotations

from collections.abc import Iterator

from moeprof.projection import PREDICTION, DeploymentProjection, MemoryLedger
from moeprof.report.text.layout import bar, pairs, table, wrapped
from moeprof.report.text.speed import speed_text
from moeprof.report.wording import counted, gib, held_bytes, read_bytes

_BAR = 20


def ledger_text(ledger: MemoryLedger) -> str:
    """Every class on the fullest rank with its provenance, then whether it fits."""
    most = max(ledger.capacity.value, ledger.total.value)
    sizes = {name: size for name, size in ledger.classes.items() if size.value}
    rows = [
        [name, gib(size.value), size.provenance.value.rjust(9), bar(size.value / most, _BAR)]
        for name, size in [*sizes.items(), ("total", ledger.total)]
    ]
    card = ledger.capacity
    rows.append(["card", gib(card.value), card.provenance.value.rjust(9), ""])
    parts = [
        wrapped(_title(ledger)),
        table(["on one GPU", "GiB", "provenance", ""], rows),
        wrapped(_verdict(ledger)),
        *(wrapped(note) for note in _notes(ledger)),
        pairs(_sources(ledger)),
    ]
    return "\n\n".join(parts)


def projection_text(projection: DeploymentProjection) -> str:
    """The ledger, what the requests asked for, the speed, and the bound on it."""
    lines = [ledger_text(projection.ledger)]
    length = projection.input_len + projection.output_len
    if length:
        asked = counted(projection.concurrency, "request")
        groups = _groups(projection.ledger, " over")
        lines.append(
            wrapped(
                f"KV is that of {asked} of {length:,} tokens{groups}; "
                f"{projection.max_concurrency:,} fit at a time."
            )
        )
    if projection.tpot_ms is not None:
        lines.append(speed_text(projection))
    if projection.fits:
        lines.append(wrapped(_speed(projection)))
    return "\n\n".join(lines)


def _speed(projection: DeploymentProjection) -> str:
    bound, read = projection.decode_bound, projection.decode_read
    speculates = projection.ledger.classes[PREDICTION].value
    unit = "steps/s of the model itself, each as many tokens as are accepted"
    return (
        f"Decode at batch 1 is bounded by {bound.value:,.0f} {unit if speculates else 'tokens/s'} "
        f"({read_bytes(read.value)} of weights a step at peak bandwidth, {bound.provenance}); "
        "real engines reach a fraction of it."
    )


def _title(ledger: MemoryLedger) -> str:
    split = ledger.parallelism
    stages = f", PP {split.pp}" if split.pp > 1 else ""
    return (
        f"{ledger.model} in {ledger.precision} on {ledger.hardware}, TP {split.tp}, EP {split.ep}, "
        f"DP {split.dp}{stages}: memory of the fullest rank"
    )


def _verdict(ledger: MemoryLedger) -> str:
    if ledger.free_bytes < 0:
        return f"Does not fit: {held_bytes(-ledger.free_bytes)} short on every GPU."
    if not ledger.fits and ledger.host_capacity is not None:
        short = ledger.host.value - ledger.host_capacity.value
        return f"Does not fit: {held_bytes(short)} short in the host memory of every node."
    least = "at least " if ledger.sliding_layers else ""
    groups = _groups(ledger, ", in each of")
    return (
        f"Fits, {held_bytes(ledger.free_bytes)} free. Room for {least}{ledger.max_kv_tokens:,} "
        f"tokens of KV at {ledger.kv_bytes_per_token:,} bytes a token and rank{groups}."
    )


def _groups(ledger: MemoryLedger, before: str) -> str:
    dp = ledger.parallelism.dp
    return f"{before} {dp} data-parallel groups" if dp > 1 else ""


def _notes(ledger: MemoryLedger) -> Iterator[str]:
    """What a reader of the rows would otherwise get wrong."""
    more = sum((size.high or size.value) - size.value for size in ledger.classes.values())
    if ledger.fits and more > ledger.free_bytes:
        yield (
            "Tight: where the engine keeps as much as it may (activations, CUDA graphs, context: "
            "assumed), it does not fit."
        )
    yield from _places(ledger)
    if ledger.sliding_layers:
        yield (
            f"{ledger.sliding_layers} layers have a sliding window and keep no more than it: a "
            f"long request takes less than {ledger.kv_bytes_per_token:,} bytes a token."
        )
    if ledger.kv_copies > 1:
        yield (
            f"The same KV stands on {ledger.kv_copies} of the {ledger.parallelism.tp} "
            "tensor-parallel ranks: less --tp and more --dp holds more requests, at the price of "
            "attention weights on each."
        )
    if ledger.state_bytes_per_sequence:
        yield (
            f"Linear attention keeps {held_bytes(ledger.state_bytes_per_sequence)} of state a "
            f"running request and rank, however long it is: here {ledger.sequences:,} of them."
        )
    if ledger.classes["engine"].value:
        yield (
            "Engine is what vLLM holds beside the checkpoint's bytes for its kernels' sake; "
            "another engine may hold less."
        )
    left_out = ledger.left_out.get(PREDICTION)
    if left_out is not None:
        yield (
            "Left out: the modules for multi-token prediction, which only speculative decoding "
            f"loads: {gib(left_out.value)} GiB more a GPU with --mtp, and their KV."
        )


def _places(ledger: MemoryLedger) -> Iterator[str]:
    """Where what this rank does not hold stands."""
    if ledger.parallelism.pp > 1:
        layers = ", ".join(f"{stage.layers}" for stage in ledger.stages)
        yield (
            f"Stages of {layers} layers; the fullest is number {ledger.stage + 1}. Room for KV is "
            "that of the stage with the least."
        )
    if ledger.host.value:
        has = f" and has {held_bytes(ledger.host_capacity.value)}" if ledger.host_capacity else ""
        yield f"Host memory of each node holds {held_bytes(ledger.host.value)} of experts{has}."


def _sources(ledger: MemoryLedger) -> dict[str, str]:
    beside = ("draft", "engine", "kv", "state", "activations")
    sources = {name: ledger.classes[name] for name in beside}
    return {
        "weights": ledger.classes["routed"].source,
        **{name: size.source for name, size in sources.items() if size.value},
        "card": ledger.capacity.source,
    }
