"""Why the first option is the first, in words."""

from __future__ import annotations

from collections.abc import Sequence

from moeprof.projection.advice.nearest import Nearest
from moeprof.projection.advice.option import Option
from moeprof.projection.advice.splits import split_name

_LIMITS = {
    "tpot": "time per output token ends it at {0} requests at a time",
    "ttft": "time to first token ends it at {0} requests at a time",
    "memory": "memory ends it at {0} requests at a time",
    "requests": "{0} requests at a time are the most that is tried",
}


def explain_choice(
    options: Sequence[Option], second: Option | None, nearest: Nearest | None
) -> str:
    """What it is, what ends it, and what the next best of other kinds costs; `second` is the next
    best split of the first option."""
    if not options:
        return nearest.misses if nearest else "the engine runs no checkpoint of this model there"
    best = options[0]
    parts = [f"{describe(best)}: {_LIMITS[best.limit].format(best.concurrency)}"]
    parts.append(_time_goes(best))
    if best.cost_per_million_tokens is None:
        parts.append("no price is known, so fewest GPUs come first")
    parts += _compared(best, options[1:], second)
    if not best.sure:
        parts.append("the targets hold in the middle of the band alone, not at its upper end")
    return "; ".join(parts)


def describe(option: Option) -> str:
    """Hardware, precision and split."""
    return f"{option.precision} on {option.hardware}, {split_name(option.parallelism)}"


def _time_goes(best: Option) -> str:
    """The operations that take most of a token's time."""
    most = sorted(best.share.items(), key=lambda item: -item[1])[:3]
    return "a token's time goes to " + ", ".join(f"{name} ({share:.0%})" for name, share in most)


def _compared(best: Option, others: Sequence[Option], second: Option | None) -> list[str]:
    here = [option for option in others if option.hardware == best.hardware]
    same = [o for o in others if o not in here and _gpu(o) == _gpu(best)]
    else_where = [option for option in others if _gpu(option) != _gpu(best)]
    kinds = {
        "another split": [second] if second else [],
        "another precision": here,
        "another number of these GPUs": same,
        "another GPU": else_where,
    }
    return [_beside(kind, found[0], best) for kind, found in kinds.items() if found]


def _gpu(option: Option) -> str:
    return option.deployment.cluster.profile.name


def _beside(kind: str, other: Option, best: Option) -> str:
    mine, its = best.cost_per_million_tokens, other.cost_per_million_tokens
    if mine is None or its is None:
        change = f"{other.output_tok_s_per_gpu / best.output_tok_s_per_gpu - 1:+.0%} tokens/s a GPU"
    else:
        change = f"{its.value / mine.value - 1:+.0%} a token"
    return f"{kind} at best {change} ({describe(other)})"
