"""The best of a sweep is the best of its parts, and no better."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.served.frontier import (
    CONCURRENCIES,
    best_table,
    candidates,
    load_bests,
    predict_bests,
    rate_at,
)
from benchmarks.served.rows import ServedRow
from benchmarks.served.trial import Band, Forecast

POINTS = load_bests()


class Linear:
    """TPOT = (8 + C) ms at TP1, shared by ranks; experts in EP cost a half more; nothing at TP2."""

    def fit(self, rows: Sequence[ServedRow]) -> None:
        """Nothing to learn."""

    def predict(self, rows: Sequence[ServedRow]) -> list[Forecast]:
        return [self._say(row) for row in rows]

    def _say(self, row: ServedRow) -> Forecast:
        if row.tp == 2:
            return Forecast(None, None)
        tpot = (8 + row.concurrency) / row.tp * (1.5 if row.moe_ep > 1 else 1)
        return Forecast(Band(tpot), Band(tpot))


def test_points_are_those_that_state_their_machine() -> None:
    assert len(POINTS) == 28
    assert {(point.hardware, point.gpus) for point in POINTS} == {
        (name, 8) for name in ("h100_sxm", "h200_sxm", "b200_sxm", "b300_sxm")
    }
    (point,) = [each for each in POINTS if each.id == "infx-iso-h100-20"]
    assert (point.user_rate, point.gpu_rate) == (20, pytest.approx(813))


def test_candidates_are_every_parallelism_by_growing_load() -> None:
    curves = list(candidates(POINTS[0]))
    shapes = [(rows[0].tp, rows[0].moe_tp, rows[0].moe_ep) for rows in curves]
    assert shapes == [(1, 1, 1), (2, 2, 1), (2, 1, 2), (4, 4, 1), (4, 1, 4), (8, 8, 1), (8, 1, 8)]
    assert all([row.concurrency for row in rows] == list(CONCURRENCIES) for rows in curves)


def test_a_point_is_the_best_deployment_that_reaches_its_rate() -> None:
    point = POINTS[0]._replace(input_len=1024, output_len=1024, user_rate=1000 / 24)
    (said,) = predict_bests(Linear(), [point])
    # At 24 ms a token TP1 holds 16 requests, which is a point of the sweep; TP4 holds 88 and TP8
    # 184, on straight lines between 64 and 128, and 128 and 256 requests.
    assert said is not None
    lines = []
    for tp, low, high in ((4, 64, 128), (8, 128, 256)):
        (user, gpu), (slower, more) = (
            (1000 * tp / (8 + each), each * 2 * 1000 / (8 + each)) for each in (low, high)
        )
        lines.append(gpu + (more - gpu) * (user - point.user_rate) / (user - slower))
    assert said == pytest.approx(max(*lines, 16 * 2 * 1000 / 24))


def test_too_fast_is_no_answer_and_too_slow_is_the_fullest() -> None:
    fast, slow = (POINTS[0]._replace(user_rate=rate) for rate in (1e4, 0.1))
    said = predict_bests(Linear(), [fast, slow])
    assert said[0] is None
    assert said[1] == pytest.approx(512 * 2 * 1000 / 520)
    assert best_table(Linear(), [fast]).splitlines()[-1].endswith("| - | - |")


@given(
    st.lists(st.tuples(st.floats(1, 500), st.floats(1, 9000)), min_size=1, max_size=8),
    st.floats(0.5, 600),
    st.floats(0.5, 600),
)
def test_asking_for_more_a_user_never_gives_more_a_gpu(
    points: list[tuple[float, float]], one: float, other: float
) -> None:
    curve = sorted(points, reverse=True)
    slow, fast = (rate_at(curve, rate) for rate in sorted((one, other)))
    if fast is not None:
        assert slow is not None and slow >= fast * (1 - 1e-9)
    assert fast is None or fast <= max(gpu for _, gpu in curve) * (1 + 1e-9)
