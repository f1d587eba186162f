"""How fast a deployment serves: time per output token, to the first one, and tokens a second."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from moeprof.projection.closed_loop import ClosedLoop, Traffic, closed_loop
from moeprof.projection.deployment import Deployment
from moeprof.projection.holding import running_limit
from moeprof.projection.laws import FAMILIARITIES, Laws, familiarity, provenance_of, shipped_laws
from moeprof.projection.step.groups import groups_of
from moeprof.projection.step.loads import ExpertLoads
from moeprof.projection.step.model import step_model
from moeprof.quantity import Provenance, Quantity
from moeprof.result import Result


@dataclass(frozen=True)
class Speed(Result):
    """Steady serving of a closed loop, with 80 % bands.

    `operations` are the milliseconds of one output token by operation, `share` the same as
    fractions. `running` is how many requests decode at a time: fewer than asked for where memory
    ends first. `familiarity` says how near the deployment is to those the laws were fitted on.
    """

    tpot_ms: Quantity
    ttft_ms: Quantity
    output_tok_s: Quantity  # of all GPUs together
    total_tok_s: Quantity  # prompt tokens too
    running: float
    operations: Mapping[str, float] = field(hash=False)
    share: Mapping[str, float] = field(hash=False)
    measured: tuple[str, ...]  # operations whose kernels were timed; the others are of the law
    familiarity: str


def project_speed(
    deployment: Deployment,
    traffic: Traffic,
    *,
    laws: Laws | None = None,
    loads: ExpertLoads | None = None,
) -> Speed:
    """The speed of `deployment` under `traffic`. See `docs/projection.md` for the law."""
    laws = laws or shipped_laws()
    groups = groups_of(deployment)
    model = step_model(deployment, laws.step, groups, loads)
    loop = closed_loop(model, traffic, running_limit(deployment, traffic))
    first_token_s = float(loop.ttft_amounts @ laws.first_token.constants(groups))
    known = provenance_of(laws.step, groups)
    weakest = max(known, model.provenance, key=lambda provenance: provenance.rank)
    speed = _with_bands(loop, first_token_s, traffic, laws, groups, weakest)
    timed = tuple(name for name in speed.operations if name in model.measured())
    return replace(speed, measured=timed)


def _with_bands(
    loop: ClosedLoop,
    first_token_s: float,
    traffic: Traffic,
    laws: Laws,
    groups: Mapping[str, str],
    provenance: Provenance,
) -> Speed:
    near = familiarity(laws, groups)
    source = f"{FAMILIARITIES[near]}; {laws.source}"

    def quantity(value: float, unit: str, ends: tuple[float, float]) -> Quantity:
        low, high = min(value, *ends), max(value, *ends)
        return Quantity(value, unit, provenance, low, high, source)

    def rate(token_s: float, first_s: float) -> float:
        whole = first_s + (traffic.output_len - 1) * token_s
        return traffic.concurrency * traffic.output_len / whole

    token = _ends(loop.tpot_s, laws, "tpot", near)
    first = _ends(first_token_s, laws, "ttft", near)
    output = rate(loop.tpot_s, first_token_s)
    ends = (rate(token[1], first[1]), rate(token[0], first[0]))
    both = 1 + traffic.input_len / traffic.output_len
    operations = {name: 1e3 * seconds for name, seconds in loop.operations.items()}
    return Speed(
        tpot_ms=quantity(1e3 * loop.tpot_s, "ms", (1e3 * token[0], 1e3 * token[1])),
        ttft_ms=quantity(1e3 * first_token_s, "ms", (1e3 * first[0], 1e3 * first[1])),
        output_tok_s=quantity(output, "tok/s", ends),
        total_tok_s=quantity(output * both, "tok/s", (ends[0] * both, ends[1] * both)),
        running=loop.running,
        operations=operations,
        share={name: each / (1e3 * loop.tpot_s) for name, each in operations.items()},
        measured=(),
        familiarity=near,
    )


def _ends(value: float, laws: Laws, what: str, near: str) -> tuple[float, float]:
    band = laws.bands[what][near]
    return value * band.low, value * band.high
