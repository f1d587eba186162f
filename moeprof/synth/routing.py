"""The statistical model, and drawing from it.

An expert's weight for a token of a request is the product of three:
- -ln(1 - its **share**): the share of tokens that use it in the token's profile, a stand-in for
  what the request is about (a label's popularities changed a little, or those of a recorded
  request). Were every expert in a token on its own, with probability 1 - exp(-weight), it would be
  in that share of them; k draws without replacement come near to that;
- the **gain** of its recency in the request, by LRU stack distance (Mattson et al. 1970): locality
  over time, from the next token to hundreds, is this one curve;
- exp(**steering** x the tokens it is owed): how far its uses lag behind its shares. Recency feeds
  on itself, and without this the loads would drift from what was asked.
k experts are drawn without replacement. A slot draws at the same height in every layer with
probability **common**: that is what ties layers together, and it changes none of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moeprof.synth.schedule import Schedule, Spans
from moeprof.threads import map_threads
from moeprof.trace.schema import expert_dtype

STEERING = 0.1  # loads are held to within some tens of tokens; less lets them wander


@dataclass(frozen=True)
class RoutingModel:
    """L layers of E experts, top-k, P profiles."""

    share: NDArray[np.float32]  # [L, P, E] share of tokens that use the expert, each P sums to k
    # [L, 2, E + 1] in prefill and in decode, by recency rank; last: not used yet in the request
    gain: NDArray[np.float64]
    top_k: int
    steering: float = STEERING
    common: float = 0.0

    @property
    def layers(self) -> int:
        """How many layers it has."""
        return len(self.share)

    @property
    def experts(self) -> int:
        """How many experts a layer has."""
        return int(self.share.shape[2])

    def draw(self, schedule: Schedule, seed: int) -> NDArray[np.unsignedinteger]:
        """[tokens, L, k] experts for the tokens of `schedule`. Same seed, same experts."""
        # By layer in memory: each is written by one thread
        shape = (self.layers, len(schedule), self.top_k)
        out: NDArray[np.unsignedinteger]
        out = np.empty(shape, expert_dtype(self.experts)).swapaxes(0, 1)
        self.draw_spans(schedule.spans(), seed, out)
        return out

    def draw_spans(self, spans: Spans, seed: int, out: NDArray[np.unsignedinteger]) -> None:
        """Fill `out` [tokens, L, k] at the rows of `spans`; layers run on threads."""
        seeds: NDArray[Any] = np.random.SeedSequence(seed).generate_state(
            self.layers + 1, np.uint64
        )
        map_threads(lambda n: self._draw_layer(n, spans, seeds, out), range(self.layers))

    def _draw_layer(
        self,
        layer: int,
        spans: Spans,
        seeds: NDArray[Any],
        out: NDArray[np.unsignedinteger],
    ) -> None:
        from moeprof.synth.kernels import new_ranks, route_layer  # Numba costs a second to import

        route_layer(
            spans.rows,
            spans.starts,
            spans.fresh,
            spans.profile,
            spans.kind,
            self.share[layer].astype(np.float64),
            self.gain[layer],
            self.steering,
            self.common,
            seeds[layer],
            seeds[-1],
            new_ranks(self.experts),
            out[:, layer],
        )
