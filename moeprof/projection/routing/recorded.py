"""The routing of a recording: its tokens, batched anew to the step in question."""

from __future__ import annotations

from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from moeprof.errors import InputError
from moeprof.placement import Placement
from moeprof.placement.replay import RoutedIds, Share
from moeprof.placement.replay.load import parse_share, refuse_other_shape
from moeprof.projection.routing.curve import MOST_TOKENS, LoadCurve, read_curve
from moeprof.projection.routing.ranks import measure_ranks, neighbouring_experts
from moeprof.projection.routing.recorded_tokens import RequestTokens, Rows
from moeprof.projection.routing.step_load import (
    Floats,
    Shape,
    StepLoad,
    check_step,
)
from moeprof.projection.routing.uniform import count_experts
from moeprof.quantity import Provenance
from moeprof.trace import Phase, Trace

_DRAWS = 1 << 20  # assignments drawn for one number of tokens, of all layers
_STEPS = (2, 128)  # fewest and most steps: layers are summed, so few of many layers do


class TraceRouting:
    """What the tokens of `trace` ask for, experts placed by `placement` or in order of id.

    A decode step takes its tokens from as many different requests, each with the same chance, as
    `analyze_locality` counts `distinct_by_batch`; a prefill step is a stretch of prompts. So far
    the load is measured. Beyond the requests recorded, tokens are drawn independently, so each
    expert with its recorded share, and beyond the prompt tokens these come again: the load is then
    fitted, as for tokens independent of one another. `keep` [tokens]
    takes part of the recording, as the window that a placement was not fitted on. Replicas share
    whole tokens in turn (`Share.ROUND_ROBIN`), as engines do.

    Same seed, same numbers. Raises InputError where no token can be used or the placement is of
    another model, TraceError where the recording is damaged or of counts.
    """

    def __init__(
        self,
        trace: Trace,
        placement: Placement | None = None,
        *,
        share: Share | str = Share.ROUND_ROBIN,
        keep: NDArray[np.bool_] | None = None,
        seed: int = 0,
    ) -> None:
        if placement is not None:
            refuse_other_shape(trace, placement)
        self.shape = Shape(len(trace.layers), trace.experts_per_layer, trace.top_k)
        self.name = "trace" if placement is None else "placed"
        self._trace, self._placement, self._keep = trace, placement, keep
        self._share, self._seed = parse_share(share), seed
        self._tokens: dict[Phase, RequestTokens] = {}
        self._curves: dict[tuple[Phase, int, int], LoadCurve] = {}

    def load(
        self, tokens: float, ranks: int, *, phase: Phase = Phase.DECODE, consecutive: int = 1
    ) -> StepLoad:
        """As `RoutingModel.load`. With a placement, on its GPUs alone."""
        self._check(tokens, ranks, consecutive)
        phase = Phase.PREFILL if phase is Phase.PREFILL else Phase.DECODE
        consecutive = 1 if phase is Phase.PREFILL else consecutive
        evidence = self._evidence(tokens, phase, consecutive)
        nothing = StepLoad.nothing(self.shape, ranks, *evidence)
        return read_curve(nothing, tokens, lambda: self._curve(phase, ranks, consecutive))

    def most_measured(self, phase: Phase = Phase.DECODE, consecutive: int = 1) -> int:
        """Tokens of the largest step that the recording itself can fill."""
        held = self._held(phase)
        return len(held.rows) if phase is Phase.PREFILL else held.requests * consecutive

    def _check(self, tokens: float, ranks: int, consecutive: int) -> None:
        if self._placement is None:
            check_step(self.shape, tokens, ranks, consecutive)
            return
        check_step(self.shape, tokens, 1, consecutive)
        if ranks != self._placement.topology.gpus:
            raise InputError(
                f"{ranks} ranks, but the placement is of {self._placement.topology.gpus} GPUs"
            )

    @cached_property
    def _ids(self) -> RoutedIds:
        return RoutedIds.of(self._trace)

    def _held(self, phase: Phase) -> RequestTokens:
        if phase not in self._tokens:
            self._tokens[phase] = RequestTokens.of(self._trace, phase, self._keep)
        return self._tokens[phase]

    def _curve(self, phase: Phase, ranks: int, consecutive: int) -> LoadCurve:
        key = (phase, ranks, consecutive)
        if key not in self._curves:
            placement = self._placement or neighbouring_experts(*self.shape[:2], ranks)
            self._curves[key] = LoadCurve(
                self.shape,
                ranks,
                lambda tokens: self._sample(tokens, phase, consecutive, placement),
                limits=(self.most_measured(phase, consecutive),),
            )
        return self._curves[key]

    def _sample(self, tokens: int, phase: Phase, consecutive: int, placement: Placement) -> Floats:
        """[COMPARED, layers] means over drawn steps, which are the same for every placement."""
        rng = np.random.default_rng([self._seed, tokens, consecutive])
        rows = self._draw(self._held(phase), tokens, phase, consecutive, rng)
        measured = [
            measure_ranks(self._counts(layer, rows), placement, layer, self._share)
            for layer in range(self.shape.layers)
        ]
        return np.stack(measured, axis=1)

    def _draw(
        self,
        held: RequestTokens,
        tokens: int,
        phase: Phase,
        consecutive: int,
        rng: np.random.Generator,
    ) -> Rows:
        """[steps, tokens] rows of the trace."""
        each = tokens * self.shape.top_k * self.shape.layers
        steps = min(max(_DRAWS // each, _STEPS[0]), _STEPS[1])
        if phase is Phase.PREFILL:
            return np.stack([held.prefill_step(tokens, rng) for _ in range(steps)])
        return np.stack([held.decode_step(tokens, consecutive, rng) for _ in range(steps)])

    def _counts(self, layer: int, rows: Rows) -> NDArray[np.int64]:
        place = self._ids.place[layer]
        chosen = self._ids.experts[layer][rows if place is None else place[rows]]
        return count_experts(chosen.reshape(len(rows), -1), self.shape.experts)

    def _evidence(self, tokens: float, phase: Phase, consecutive: int) -> tuple[Provenance, str]:
        held, most = self._held(phase), self.most_measured(phase, consecutive)
        what = f"{self._trace}: {len(held.rows):,} tokens of {held.requests:,} requests"
        if held.stands_in:
            other = "decode" if phase is Phase.PREFILL else "prefill"
            return Provenance.ASSUMED, f"{what}, {other} tokens standing in for the other phase"
        if tokens > most:
            drawn = "drawn again" if phase is Phase.PREFILL else "drawn independently"
            how = f"beyond {most:,} a step they are {drawn}"
            beyond = f", above {MOST_TOKENS:,} with the ratios to even routing kept"
            return Provenance.FITTED, f"{what}; {how}{beyond if tokens > MOST_TOKENS else ''}"
        return Provenance.MEASURED, what
