"""A solved placement, judged."""

from __future__ import annotations

from moeprof.placement import PlacementResult
from moeprof.placement.replay import Interval
from moeprof.report.text.layout import pairs, wrapped
from moeprof.report.wording import counted, held_bytes, read_bytes


def placement_text(result: PlacementResult) -> str:
    """What was solved, how even it is on both windows, and what it costs."""
    return "\n\n".join([wrapped(_head(result)), pairs(_balance(result)), pairs(_costs(result))])


def _head(result: PlacementResult) -> str:
    slots = sorted(set(result.slots))
    each = f"{slots[0]}" if len(slots) == 1 else f"{slots[0]} to {slots[-1]}"
    where = f"{result.gpus} GPUs" + (f" in {result.nodes} nodes" if result.nodes > 1 else "")
    judged = {
        "none": "judged on the load that it was fitted on",
        "time": "fitted on the earlier window and judged on the later one",
        "request": "fitted on some requests and judged on the others",
    }[result.split]
    return (
        f"{result.solver}: {result.experts} experts of {counted(len(result.layers), 'layer')} on "
        f"{where}, {each} slots each, {result.redundant} redundant; {judged}."
    )


def _balance(result: PlacementResult) -> dict[str, str]:
    figures = {
        "imbalance, fit": f"{result.imbalance_fit:.4f}  (no map is below {result.lower_bound:.4f})",
        "imbalance, judged": f"{result.imbalance_test:.4f}  (in order of id: "
        f"{result.imbalance_test_linear:.4f})",
    }
    if result.steps is not None:
        figures["imbalance of a step"] = _interval(result.steps.step_imbalance)
    figures["duplicates on a GPU"] = f"{result.duplicates:,}"
    return figures


def _costs(result: PlacementResult) -> dict[str, str]:
    figures = {"experts to move": f"{result.moved_slots:,} from {result.moved_from}"}
    if result.redundant_bytes is not None:
        figures["memory of replicas"] = held_bytes(result.redundant_bytes)
    traffic = result.traffic
    if traffic is None:
        return figures
    figures["between GPUs"] = (
        f"{read_bytes(traffic.bytes_between_gpus_per_token)} a token, to "
        f"{traffic.gpus_per_token:.2f} GPUs a layer"
    )
    if result.nodes > 1:
        figures["between nodes"] = (
            f"{read_bytes(traffic.bytes_between_nodes_per_token)} a token, to "
            f"{traffic.nodes_per_token:.2f} nodes a layer"
        )
    figures["bytes are"] = (
        f"{traffic.provenance.value}: the hidden state of {traffic.hidden_size:,} elements once to "
        f"each GPU or node and back, {traffic.dispatch_bytes:g} and {traffic.combine_bytes:g} "
        "bytes an element, home GPUs alike"
    )
    return figures


def _interval(value: Interval) -> str:
    known = value.low is not None and value.high is not None
    return f"{value.value:.4f}" + (f" [{value.low:.4f}, {value.high:.4f}]" if known else "")
