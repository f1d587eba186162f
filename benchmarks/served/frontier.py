"""Published bests of a sweep: total tokens/s a GPU at a rate per user, parallelism and load unsaid.

A predictor answers for every parallelism and concurrency that the sweep may have had; the best of
its answers at that rate is what it says of the point. A sweep that tried less publishes less.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

from .rows import DATA, ServedRow
from .tables import markdown
from .trial import Predictor

CONCURRENCIES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
DEGREES = (1, 2, 4, 8)


class Best(NamedTuple):
    """The best of a sweep on at most `gpus` GPUs; both rates in tokens/s."""

    id: str
    model: str
    hardware: str
    engine: str
    precision: str
    gpus: int
    input_len: int
    output_len: int
    user_rate: float
    gpu_rate: float

    @property
    def machine(self) -> Best:
        """What its sweep has in common with others'."""
        return self._replace(id="", user_rate=0.0, gpu_rate=0.0)


def load_bests(name: str = "m3_serving") -> list[Best]:
    """Points of benchmarks/data/`name`.csv whose engine and machine are stated, without drafts."""
    with (DATA / f"{name}.csv").open(newline="") as file:
        return [
            _best(line)
            for line in csv.DictReader(file)
            if line["kind"] == "iso-interactivity" and line["engine"] and line["gpus"]
        ]


def predict_bests(predictor: Predictor, points: Sequence[Best]) -> list[float | None]:
    """Total tokens/s a GPU of each point; None where no candidate is that fast for a user."""
    curves = {
        machine: [_curve(predictor, rows) for rows in candidates(machine)]
        for machine in dict.fromkeys(point.machine for point in points)
    }
    said = []
    for point in points:
        rates = (rate_at(curve, point.user_rate) for curve in curves[point.machine])
        said.append(max((rate for rate in rates if rate is not None), default=None))
    return said


def candidates(machine: Best) -> Iterator[list[ServedRow]]:
    """For each TP, with experts in TP or in EP, its rows by growing concurrency."""
    for tp in DEGREES:
        for ep in sorted({1, tp}):
            if tp <= machine.gpus:
                yield [_row(machine, tp, ep, each) for each in CONCURRENCIES]


def rate_at(curve: Sequence[tuple[float, float]], user_rate: float) -> float | None:
    """Best rate of a GPU with at least `user_rate` for each user, between points a straight line.

    `curve`: (rate of a user, rate of a GPU) by growing concurrency.
    """
    reached = [gpu for user, gpu in curve if user >= user_rate]
    for (user, gpu), (slower, more) in pairwise(curve):
        if user >= user_rate > slower:
            reached.append(gpu + (more - gpu) * (user - user_rate) / (user - slower))
    return max(reached, default=None)


def best_table(predictor: Predictor, points: Sequence[Best]) -> str:
    """A line for each point: published and predicted tokens/s a GPU."""
    said = predict_bests(predictor, points)
    lines = [
        (
            point.id,
            f"{point.hardware}, {point.engine}, {point.precision}",
            f"{point.user_rate:g}",
            f"{point.gpu_rate:g}",
            "-" if rate is None else f"{rate:.0f}",
            "-" if rate is None else f"{100 * (rate / point.gpu_rate - 1):+.1f} %",
        )
        for point, rate in zip(points, said, strict=True)
    ]
    head = ("point", "machine", "tok/s a user", "total tok/s a GPU", "predicted", "error")
    return markdown(head, lines)


def _curve(predictor: Predictor, rows: Sequence[ServedRow]) -> list[tuple[float, float]]:
    """Rates of a user and of a GPU, input tokens counted; rows without a forecast are left out."""
    curve = []
    for row, said in zip(rows, predictor.predict(rows), strict=True):
        if said.tpot_ms is None:
            continue
        first = said.ttft_ms.value if said.ttft_ms else said.tpot_ms.value
        request_s = (first + (row.output_len - 1) * said.tpot_ms.value) / 1000
        tokens = row.concurrency * (row.input_len + row.output_len)
        curve.append((1000 / said.tpot_ms.value, tokens / request_s / row.gpus))
    return curve


def _row(machine: Best, tp: int, ep: int, concurrency: int) -> ServedRow:
    name = f"{machine.model.split('/')[-1]} {machine.hardware} {machine.engine} {machine.precision}"
    load = f"{machine.input_len}x{machine.output_len} c{concurrency}"
    return ServedRow(
        id=f"sweep {name} {load} tp{tp} ep{ep}",
        source="",
        engine=machine.engine,
        engine_version="",
        model=machine.model,
        hardware=machine.hardware,
        precision=machine.precision,
        gemm="",
        moe="",
        input_len=machine.input_len,
        output_len=machine.output_len,
        concurrency=concurrency,
        tp=tp,
        dp=1,
        moe_tp=tp // ep,
        moe_ep=ep,
        ttft_ms=None,
        tpot_ms=None,
    )


def _best(line: dict[str, str]) -> Best:
    gpus = int(line["gpus"])
    return Best(
        id=line["id"],
        model=line["model"],
        hardware=line["hardware"],
        engine=line["engine"],
        precision=line["precision"],
        gpus=gpus,
        input_len=int(line["input_len"]),
        output_len=int(line["output_len"]),
        user_rate=float(line["output_tok_s_per_user"]),
        gpu_rate=float(line["total_tok_s"]) / gpus,
    )
