"""AIConfigurator's skew: a power law of expert loads, fitted to recorded ones.

Its tables are measured with loads drawn by `sample_power_law`, rounded and capped by
`_generate_power_law_distribution` (collector/helper.py of github.com/ai-dynamo/aiconfigurator,
Apache-2.0, commit 095f58a): x in [xmin, xmax] with a density of x^-alpha, scaled to all
assignments, no expert above the number of tokens. xmax / xmin is 0.8 x tokens, so one alpha means
another skew at each number of tokens: the fit is over all of them at which the mean expert has
8 assignments or more, below which rounding decides.
"""

from __future__ import annotations

import json
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from moeprof.errors import InputError
from moeprof.trace.formats.block import Findings
from moeprof.trace.formats.export_arrays import expert_load
from moeprof.trace.reader import Trace

BALANCED = "balanced"
COLLECTED = {f"power_law_{alpha}": alpha for alpha in (1.01, 1.2)}  # tables that it ships
# fmt: off
SWEEP = (  # tokens, as in collector/cases/base_ops/moe.yaml
    1, 2, 4, 8, 16, 32, 48, 64, 80, 96, 128, 160, 192, 256, 320, 384, 512, 768, 1024, 1536, 2048,
    3072, 4096, 6144, 8192, 12288, 16384,
)
# fmt: on
STEEPEST, FLATTEST = 3.0, -8.0  # below, xmax^(1 - alpha) overflows its float32
_FLAT, _STEEP = 1 - FLATTEST, 0.05  # of 1 - alpha, where alpha < 1
ALPHAS = np.concatenate([1 - np.geomspace(_FLAT, _STEEP, 250), np.linspace(0.96, STEEPEST, 206)])
_DRAWS = 200
FEW = 30  # assignments an expert, on average, below which chance looks like skew


def sweep(experts: int, top_k: int) -> list[int]:
    """Numbers of tokens of its tables at which the mean expert has 8 assignments or more."""
    return [tokens for tokens in SWEEP if tokens * top_k >= 8 * experts] or [SWEEP[-1]]


def quantile_shares(
    alphas: NDArray[np.float64], tokens: int, experts: int, top_k: int
) -> NDArray[np.float64]:
    """[A, experts] shares of a step's assignments, descending, at the quantiles of the law."""
    uniform = np.broadcast_to((np.arange(experts)[::-1] + 0.5) / experts, (len(alphas), experts))
    return _capped(_scaled(_inverse(uniform, alphas[:, None], 0.8 * tokens)), 1 / top_k)


def _inverse(
    uniform: NDArray[np.float64], alpha: NDArray[np.float64], ratio: float
) -> NDArray[np.float64]:
    """x in [1, ratio] below which a share `uniform` of x^-alpha lies."""
    power = np.where(alpha == 1, 1e-9, 1 - alpha)  # at 1 it is log-uniform, the limit
    return np.asarray((1 + uniform * np.expm1(power * np.log(ratio))) ** (1 / power))


def _scaled(loads: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(loads / loads.sum(axis=-1, keepdims=True))


def _capped(shares: NDArray[np.float64], most: float) -> NDArray[np.float64]:
    """Shares of no more than `most`; what is above goes to the smallest, as theirs does."""
    if shares.shape[-1] * most <= 1:
        return np.full_like(shares, 1 / shares.shape[-1])
    over = np.maximum(shares - most, 0).sum(axis=-1)
    capped = np.minimum(shares, most)
    for row in np.flatnonzero(over > 0):
        capped[row] = np.maximum(capped[row], _level(np.sort(capped[row]), over[row]))
    return capped


def _level(ascending: NDArray[np.float64], poured: float) -> float:
    """Up to where `poured` fills the lowest of `ascending`."""
    counts = np.arange(1, len(ascending) + 1)
    levels = (np.cumsum(ascending) + poured) / counts
    reached = levels >= ascending
    return float(levels[reached][-1])


def distances(
    shares: NDArray[np.float64], alphas: NDArray[np.float64], top_k: int
) -> NDArray[np.float64]:
    """[A, layers]: assignments, as a share, that would have to go to an expert of another rank.

    Half the sum of |recorded - expected| over experts from hottest to coldest, mean over the
    numbers of tokens of AIConfigurator's sweep. `shares`: [layers, experts].
    """
    ordered = np.sort(shares, axis=1)[:, ::-1]
    total = np.zeros((len(alphas), len(shares)))
    numbers = sweep(shares.shape[1], top_k)
    for tokens in numbers:
        expected = quantile_shares(alphas, tokens, shares.shape[1], top_k)
        for layer, recorded in enumerate(ordered):
            total[:, layer] += np.abs(expected - recorded).sum(axis=1) / 2
    return total / len(numbers)


def busiest_group(
    shares: NDArray[np.float64], alpha: float | None, ranks: int, top_k: int
) -> float:
    """Load of the heaviest of `ranks` groups of neighbouring experts over the mean group's.

    Of the recorded `shares` if `alpha` is None (mean over layers), else of loads drawn as
    AIConfigurator draws them (mean over its numbers of tokens): the rank that it measures.
    """
    experts = shares.shape[1]
    if alpha is not None:
        rng, drawn = np.random.default_rng(0), []
        exponent = np.array([[alpha]])
        for tokens in sweep(experts, top_k):
            loads = _inverse(rng.random((_DRAWS, experts)), exponent, 0.8 * tokens)
            drawn.append(_capped(_scaled(loads), 1 / top_k))
        shares = np.concatenate(drawn)
    groups = shares.reshape(len(shares), ranks, -1).sum(axis=2)
    return float((groups.max(axis=1) * ranks).mean())


def write_aiconfigurator(trace: Trace, file: IO[bytes], found: Findings) -> int:
    """The skew as AIConfigurator takes it, and how far that is from what was recorded.

    `workload_distribution` is a field of its ModelConfig, the nearest that it has tables for;
    `token_expert_distributions` is the list of its collector, which measures any alpha.
    """
    load = expert_load(trace)
    used = load.sum(axis=1) > 0
    if not used.any():
        raise InputError(f"{trace}: no token was recorded, so there is no load to fit")
    if load.sum() < FEW * load[used].size:
        found.note(f"fewer than {FEW} assignments an expert: part of the skew is chance")
    shares = _scaled(load[used].astype(np.float64))
    layers = np.array(trace.layers)[used]
    file.write(json.dumps(_document(trace, shares, layers.tolist()), indent=1).encode() + b"\n")
    return len(layers)


def _document(trace: Trace, shares: NDArray[np.float64], layers: list[int]) -> dict[str, Any]:
    top_k, experts = trace.top_k, trace.experts_per_layer
    away = distances(shares, ALPHAS, top_k)
    by_layer = ALPHAS[away.argmin(axis=0)]
    alpha = float(ALPHAS[away.mean(axis=1).argmin()])
    flat = np.abs(shares - 1 / experts).sum(axis=1).mean() / 2
    named = distances(shares, np.array(list(COLLECTED.values())), top_k).mean(axis=1)
    distance = {BALANCED: float(flat), **dict(zip(COLLECTED, named.tolist(), strict=True))}
    accepted = min(distance, key=lambda name: distance[name])
    distance["fitted"] = float(away.mean(axis=1).min())
    ranks = [n for n in (2, 4, 8, 16, 32, 64) if experts % n == 0 and n < experts]
    return {
        "workload_distribution": accepted,
        "token_expert_distributions": [{"name": "power_law", "power_law_alpha": round(alpha, 3)}],
        "fit": {
            "alpha": round(alpha, 3),
            "alpha_quartiles_of_layers": np.round(np.percentile(by_layer, [25, 75]), 3).tolist(),
            "alpha_by_layer": dict(zip(map(str, layers), by_layer.round(3).tolist(), strict=True)),
            "distance": {name: round(value, 4) for name, value in distance.items()},
            "busiest_group_over_mean": {
                str(n): _groups(shares, alpha, accepted, n, top_k) for n in ranks
            },
            "num_experts": experts,
            "topk": top_k,
            "tokens": trace.tokens,
        },
    }


def _groups(
    shares: NDArray[np.float64], alpha: float, accepted: str, ranks: int, top_k: int
) -> dict[str, float]:
    """Recorded, at the fitted alpha, and under what was accepted."""
    law = COLLECTED.get(accepted)
    values = {
        "recorded": busiest_group(shares, None, ranks, top_k),
        "fitted": busiest_group(shares, alpha, ranks, top_k),
        accepted: 1.0 if law is None else busiest_group(shares, law, ranks, top_k),
    }
    return {name: round(value, 3) for name, value in values.items()}
