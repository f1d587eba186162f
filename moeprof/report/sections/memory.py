"""What the target model holds on every GPU in each precision, and the room left for KV."""

from __future__ import annotations

from moeprof.model import TENSOR_CLASSES
from moeprof.projection import PREDICTION, DeploymentProjection, MemoryLedger
from moeprof.report.blocks import (
    Axis,
    Bar,
    Bars,
    Block,
    Part,
    Section,
    Table,
    Tick,
    axis_ticks,
)
from moeprof.report.charts import Mark
from moeprof.report.contents import ReportContents
from moeprof.report.wording import GIB, count, gib, held_bytes, read_bytes, short_count

# What is drawn as one piece; the table has every class.
PIECES: dict[str, tuple[str, tuple[str, ...]]] = {
    "routed experts": ("a", ("routed",)),
    "shared experts": ("c", ("shared",)),
    "attention and indexer": ("b", ("attention", "indexer")),
    "other weights": (
        "d",
        (
            *("dense", "embedding", "head", "router", "vision", "norms"),
            *("prediction", "redundant", "draft", "engine"),
        ),
    ),
    "activations and CUDA graphs": ("e", ("activations", "graphs", "context")),
}


def memory_section(contents: ReportContents) -> Section:
    """A bar a precision, and the ledger of every tensor class."""
    title = "Memory"
    if not contents.deployments:
        return Section("memory", title, [f"Not shown: {contents.missing['memory']}."], [])
    ledger = contents.deployments[0].ledger
    split = ledger.parallelism
    lead = [
        f"{ledger.model} on {ledger.hardware}: tensor parallel {split.tp}, data parallel "
        f"{split.dp}, the fullest rank. Weights come from the model's own tensors and each "
        "checkpoint's formats; what is left below the reserve holds KV.",
    ]
    if contents.transfer:
        lead.append(
            "None of this depends on routing, so it holds although another model was recorded."
        )
    blocks: list[Block] = [
        _bars(contents.deployments),
        _ledger_table(contents),
        _speed_table(contents),
    ]
    return Section("memory", title, lead, blocks)


def _bars(deployments: list[DeploymentProjection]) -> Bars:
    ledgers = [deployment.ledger for deployment in deployments]
    capacity = ledgers[0].capacity.value
    usable = capacity - ledgers[0].classes["reserve"].value
    end = max(capacity, *(ledger.weights.value for ledger in ledgers)) * 1.02
    return Bars(
        id="memory-stack",
        title="Weights and room for KV on one GPU",
        alt="; ".join(f"{_name(ledger)}: {_verdict(ledger)}" for ledger in ledgers),
        bars=[
            Bar(_name(ledger), _parts(ledger, usable, end), _verdict(ledger), ledger.fits)
            for ledger in ledgers
        ],
        axis=Axis(
            "GiB on one GPU",
            [
                Tick(at * GIB / end, f"{at:g}", minor=order % 2 == 1)
                for order, at in enumerate(axis_ticks(0, end / GIB, 6))
            ],
        ),
        marks=[
            Mark(usable / end, f"usable {held_bytes(usable)}"),
            Mark(capacity / end, f"card {held_bytes(capacity)}"),
        ],
        caption=(
            "Usable is the card less what the engine leaves alone; activations, CUDA graphs and "
            "communication buffers are assumed by the engine's defaults."
        ),
    )


def _parts(ledger: MemoryLedger, usable: float, end: float) -> list[Part]:
    parts = []
    for name, (hue, classes) in PIECES.items():
        size = sum(ledger.classes[tensor_class].value for tensor_class in classes)
        if size:
            parts.append(Part(name, hue, size / end, f"{name}: {held_bytes(size)}"))
    taken = sum(
        size.value for name, size in ledger.classes.items() if name not in ("kv", "reserve")
    )
    room = usable - taken
    if room > 0:
        text = (
            f"room for KV: {held_bytes(room)}, {_least(ledger)}{count(ledger.max_kv_tokens)} tokens"
        )
        parts.append(Part("room for KV", "room", room / end, text))
    return parts


def _name(ledger: MemoryLedger) -> str:
    return ledger.precision.upper()


def _verdict(ledger: MemoryLedger) -> str:
    if not ledger.fits:
        return f"does not fit, {held_bytes(-ledger.free_bytes)} short"
    return f"fits, {_least(ledger)}{short_count(ledger.max_kv_tokens)} tokens of KV"


def _least(ledger: MemoryLedger) -> str:
    """A sliding window keeps less than every token, so more of them may fit."""
    return "at least " if ledger.sliding_layers else ""


def _ledger_table(contents: ReportContents) -> Table:
    ledgers = [deployment.ledger for deployment in contents.deployments]
    rows = [
        [name, *(gib(ledger.classes[name].value) for ledger in ledgers)] for name in TENSOR_CLASSES
    ]
    rows += [
        ["weights", *(gib(ledger.weights.value) for ledger in ledgers)],
        *_rows_beside_weights(ledgers),
        *(
            [name, *(gib(ledger.classes[name].value) for ledger in ledgers)]
            for name in ("activations", "graphs", "context", "reserve")
        ),
        ["card", *(gib(ledger.capacity.value) for ledger in ledgers)],
        ["KV bytes a token", *(f"{ledger.kv_bytes_per_token:,}" for ledger in ledgers)],
        [
            "KV tokens, at least" if ledgers[0].sliding_layers else "KV tokens, at most",
            *(f"{ledger.max_kv_tokens:,}" for ledger in ledgers),
        ],
        ["provenance of weights", *(ledger.weights.provenance.value for ledger in ledgers)],
    ]
    return Table(
        title="The memory ledger as a table",
        columns=["on one GPU, in GiB where not said otherwise", *map(_name, ledgers)],
        rows=rows,
        note=(
            "KV in BF16. Activations, CUDA graphs, context and reserve are assumed; the card is "
            "what its driver offers."
        ),
    )


def _rows_beside_weights(ledgers: list[MemoryLedger]) -> list[list[str]]:
    """Rows that only some models have: what engines add, states, and what is not loaded."""
    kinds = [
        ("added by the engine", [ledger.classes["engine"] for ledger in ledgers]),
        ("state of linear attention, a sequence", [ledger.classes["state"] for ledger in ledgers]),
        (
            "multi-token prediction, not loaded",
            [ledger.left_out[PREDICTION] for ledger in ledgers if PREDICTION in ledger.left_out],
        ),
    ]
    return [
        [name, *(gib(size.value) for size in sizes)]
        for name, sizes in kinds
        if any(size.value for size in sizes)
    ]


def _speed_table(contents: ReportContents) -> Table:
    rows = [
        [
            _name(deployment.ledger),
            read_bytes(deployment.decode_read.value),
            f"{deployment.decode_bound.value:,.0f}",
            deployment.decode_bound.provenance.value,
        ]
        for deployment in contents.deployments
    ]
    return Table(
        title="Upper bound of decode at batch 1",
        columns=["precision", "weights read a step", "at most, tokens/s", "provenance"],
        rows=rows,
        note=(
            "Bytes that one token must read over the peak bandwidth of all GPUs: no kernel beats "
            "this, and real engines reach a fraction of it. KV is not counted."
        ),
    )
