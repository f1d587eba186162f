"""How evenly experts, or GPUs, are loaded."""

from __future__ import annotations

from moeprof.analysis import LoadResult, SamplingError
from moeprof.analysis.change_points import ChangePoint
from moeprof.analysis.request_load import RequestLoad
from moeprof.report.sampled import error_words
from moeprof.report.text.layout import bar, shortened, table, wrapped
from moeprof.report.wording import command, counted, listed, percent, times

_BAR = 11
_NAMED = 5  # experts that a sentence names


def load_text(load: LoadResult, sampling: SamplingError | None = None, trace: str = "T") -> str:
    """The answer in sentences, then layers, steps, phases and labels, then what to try next.

    `sampling` is the error of a recording whose requests were sampled.
    """
    parts = [wrapped(_head(load))]
    if sampling:
        parts.append(wrapped(f"Requests were sampled. {error_words(sampling)}"))
    if load.per_step:
        parts.append(wrapped(_step_words(load)))
    if load.by_request:
        parts.append(wrapped(_outlying_words(load.by_request)))
        parts.append(wrapped(_change_words(load.by_request)))
    parts.append(_layers(load))
    if load.per_step:
        parts.append(_steps(load))
    parts += _groups(load)
    parts.append(
        wrapped(
            "imbalance: max / mean, 1 is even. bits: entropy. cv: standard deviation / mean. "
            "jain: 1 is even. unused: without a token."
        )
    )
    following = command("place", trace, "--gpus", load.gpus or 8, "--solver", "best")
    parts.append(f"Next: {following}")
    return "\n\n".join(parts)


def _head(load: LoadResult) -> str:
    """The mean over layers, its interval, and the layer that is worst."""
    what = "expert" if load.gpus is None else f"of {load.gpus} GPUs, experts in order of id,"
    tokens = counted(load.tokens, "token") if load.tokens else "counts only"
    worst = max(load.per_layer, key=lambda layer: layer.imbalance, default=None)
    interval = load.by_request.imbalance if load.by_request else None
    within = f" [{times(interval.low)}, {times(interval.high)}]" if interval else ""
    said = (
        f"Imbalance: the busiest {what} of a layer has {times(load.mean_imbalance)}{within} the "
        f"mean load, on average over {counted(len(load.per_layer), 'layer')}; {tokens}."
    )
    if worst:
        said += f" Worst is layer {worst.layer} with {times(worst.imbalance)}."
    if interval:
        said += f" [low, high]: 95 %, drawing {interval.unit_of_resampling} anew."
    return said


def _step_words(load: LoadResult) -> str:
    """The largest step, and how much of its imbalance is no router's fault."""
    step = load.per_step[-1]
    return (
        f"In one step of {counted(step.tokens, 'decode token')} it is {times(step.imbalance)}, "
        f"where an even router would show {times(step.even)} by chance alone."
    )


def _outlying_words(requests: RequestLoad) -> str:
    """Dead and hot experts, with the rule that called them so."""
    found = requests.outlying
    if found is None:
        return "Too few requests to call an expert dead or hot: another text may use others."
    unsure = found.unused - len(found.dead)
    dead = counted(len(found.dead), "dead expert") if found.dead else "No dead experts"
    said = [f"{dead} (chance of any false one {percent(found.dead_error)} at most)"]
    if unsure:
        said.append(f"{counted(unsure, 'expert')} unused that more tokens might show")
    hot = counted(len(found.hot), "hot expert") if found.hot else "no hot experts"
    hot += f", surely above {times(found.hot_above)} the mean"
    if found.hot:
        names = [
            f"{expert.expert} of layer {expert.layer} {times(expert.over_even)}"
            for expert in found.hot[:_NAMED]
        ]
        more = len(found.hot) - len(names)
        hot += f": {listed([*names, f'{more} more'] if more else names)}"
    said.append(hot)
    return (
        "; ".join(said)
        + f". Requests differ, so {found.design_effect:.3g} tokens say as much as one independent."
    )


def _change_words(requests: RequestLoad) -> str:
    """Where the load shifts over time."""
    changes = requests.change_points
    if changes is None:
        return "Too few requests to tell whether the load shifts over time."
    if not changes:
        return "No shift of the load over time beyond what differs between requests anyway."
    return f"The load shifts {counted(len(changes), 'time')}: {listed(list(map(_shift, changes)))}."


def _shift(change: ChangePoint) -> str:
    return (
        f"at request {change.request} (step {change.step:,}, {percent(change.share)} of tokens, "
        f"p {change.p_value:.3f}), where {percent(change.distance)} of assignments move and "
        f"imbalance goes from {times(change.imbalance_before)} to {times(change.imbalance_after)}"
    )


def _layers(load: LoadResult) -> str:
    worst = max((layer.imbalance for layer in load.per_layer), default=1.0)
    rows = [
        [
            layer.layer,
            f"{layer.assignments:,}",
            times(layer.imbalance),
            f"{layer.gini:.3f}",
            f"{layer.entropy:.2f}",
            f"{layer.coefficient_of_variation:.2f}",
            f"{layer.jain:.3f}",
            layer.unused_experts,
            bar(layer.imbalance / worst, _BAR),
        ]
        for layer in load.per_layer
    ]
    names = ["layer", "assignments", "imbalance", "gini", "bits", "cv", "jain"]
    return table([*names, "unused", "imbalance".ljust(_BAR)], rows, left=0)


def _steps(load: LoadResult) -> str:
    """Imbalance of a step by its tokens; a star where requests come twice."""
    rows = [
        [
            f"{step.tokens:,}{'*' if step.resampled else ''}",
            times(step.imbalance),
            times(step.p95),
            times(step.even),
            step.steps,
        ]
        for step in load.per_step
    ]
    shown = table(["tokens of a step", "imbalance", "p95", "even router", "steps drawn"], rows, 0)
    if any(step.resampled for step in load.per_step):
        shown += "\n* more tokens than requests: some requests come twice in a step."
    return shown


def _groups(load: LoadResult) -> list[str]:
    groups = [("phase", load.per_phase), ("label", load.per_label)]
    return [
        table(
            [kind, "mean imbalance"],
            [[shortened(name, 40), times(value)] for name, value in values.items()],
        )
        for kind, values in groups
        if values
    ]
