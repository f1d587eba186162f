"""A GiB three ways, where every speed can be worked out by hand."""

from __future__ import annotations

import pytest

from moeprof.errors import InputError
from moeprof.offload import plan_offload
from moeprof.projection.routing import (
    Shape,
    StepLoad,
    TraceRouting,
    UniformRouting,
    offloaded_speed,
    value_of_gib,
)
from moeprof.projection.routing.gib import GIB
from moeprof.report.text.routing import gib_text
from moeprof.trace import Phase, open_trace
from tests.projection.routing.test_recorded import small_trace
from tests.recordings import SHIPPED

SHAPE = Shape(4, 16, 2)


def flat(tokens: float, distinct: float, assignments: float) -> float:
    """A step that takes as long whatever it holds: twice the sequences are twice the speed."""
    return 0.01


class Halved:
    """Even routing whose busiest rank has half as much with a redundant slot."""

    name, shape = "halved", SHAPE

    def __init__(self, redundant: int) -> None:
        self.redundant = redundant

    def load(
        self, tokens: float, ranks: int, *, phase: Phase = Phase.DECODE, consecutive: int = 1
    ) -> StepLoad:
        even = UniformRouting(SHAPE).load(tokens, ranks)
        object.__setattr__(
            even, "busiest_assignments", even.busiest_assignments / (1 + self.redundant)
        )
        return even


def test_kv_is_worth_the_sequences_it_holds() -> None:
    value = value_of_gib(
        UniformRouting(SHAPE), flat, sequences=10, ranks=1, kv_bytes_per_sequence=GIB / 5
    )
    (use,) = value.uses
    assert (use.use, use.added, use.added_bytes) == ("kv", 5, GIB)
    assert (use.tok_s_before, use.tok_s_after) == pytest.approx((1000, 1500))
    assert use.tok_s_per_gib == pytest.approx(500)
    assert set(value.missing) == {"cache", "redundancy"}


def test_what_a_gib_does_not_hold_is_taken_whole_and_divided() -> None:
    value = value_of_gib(
        UniformRouting(SHAPE), flat, sequences=10, ranks=1, kv_bytes_per_sequence=4 * GIB
    )
    assert value.uses[0].added_bytes == 4 * GIB
    assert value.uses[0].tok_s_per_gib == pytest.approx(100 / 4)


def test_redundancy_is_worth_the_waiting_it_saves() -> None:
    def waiting(tokens: float, distinct: float, assignments: float) -> float:
        return assignments / 1000

    value = value_of_gib(
        Halved(0),
        waiting,
        sequences=64,
        ranks=4,
        kv_bytes_per_sequence=GIB,
        placed=Halved,
        slot_bytes=2 * GIB,
    )
    use = next(use for use in value.uses if use.use == "redundancy")
    assert use.tok_s_after == pytest.approx(2 * use.tok_s_before)
    assert use.tok_s_per_gib == pytest.approx(use.tok_s_before / 2)
    assert value.uses[0] is use  # another sequence only adds to the busiest rank
    assert max(map(len, gib_text(value).splitlines())) <= 80


def test_with_experts_offloaded_it_may_be_cache() -> None:
    def speed(more: float, sequences: int) -> float:
        return 10 + 3 * more / GIB + 0.5 * sequences

    value = value_of_gib(
        UniformRouting(SHAPE), sequences=1, ranks=1, kv_bytes_per_sequence=GIB / 2, offloaded=speed
    )
    gains = {use.use: use.tok_s_per_gib for use in value.uses}
    assert gains == {"kv": pytest.approx(4), "cache": pytest.approx(3)}
    assert "redundancy" in value.missing


def test_what_it_rests_on_is_said() -> None:
    routing = TraceRouting(small_trace([4, 4]))
    value = value_of_gib(routing, flat, sequences=2, ranks=1, kv_bytes_per_sequence=GIB)
    assert value.uses[0].provenance == "fitted"  # a third sequence was not recorded


@pytest.mark.parametrize(
    "given", [{"seconds": None}, {"offloaded": lambda more, n: 1.0}, {"kv_bytes_per_sequence": 0},
              {"slot_bytes": -1}]
)  # fmt: skip
def test_what_contradicts_itself_is_refused(given: dict[str, object]) -> None:
    arguments = {"seconds": flat, "sequences": 2, "ranks": 2, "kv_bytes_per_sequence": 1} | given
    with pytest.raises(InputError):
        value_of_gib(UniformRouting(SHAPE), **arguments)  # type: ignore[arg-type]


def test_a_step_without_time_is_refused() -> None:
    with pytest.raises(InputError, match="positive"):
        value_of_gib(
            UniformRouting(SHAPE), lambda *_: 0.0, sequences=2, ranks=2, kv_bytes_per_sequence=1
        )


def test_offload_gives_the_speed_where_experts_are_below() -> None:
    trace = open_trace(SHIPPED)
    options = {"policy": "lru", "precision": "q2_k", "transfer": "hit-ratio", "context_tokens": 512}
    speed = offloaded_speed(
        trace, "minimax-m3", "rtx-4090+epyc-9005", vram_bytes=20 * GIB, **options
    )
    plan = plan_offload(
        trace, "minimax-m3", "rtx-4090+epyc-9005", vram_bytes=20 * GIB, max_num_seqs=2, **options
    )
    assert speed(0, 2) == plan.tok_s
    assert speed(4 * GIB, 2) > plan.tok_s
