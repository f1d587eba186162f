"""The law of a MoE kernel: a launch, the weights of the experts read, and whole tiles computed.

    t = launch + sum over both matrix products of
          distinct x bytes / (bandwidth share x bandwidth x filled) + padded rows x FLOP / (compute
          share x peak) + tiles x tile
        + passes x activations / bandwidth

Bytes are read once for each distinct expert, so few tokens cost what their experts weigh; rows are
padded to tiles (`tiles.py`), so many tokens cost what they compute. Tables of kernels show the sum
of both, not the larger. `filled` is the share of the bandwidth that few blocks of threads can draw:
x/(1 + x^4)^(1/4) of x = column blocks / `blocks`. Six constants a (system, engine, kernel, format),
shared by all TP x EP; `benchmarks/moe_kernels.py` fits them.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from moeprof.projection.moe_kernels.tiles import is_cutlass, padded_rows, tile_of
from moeprof.projection.moe_kernels.work import Floats, RankWork

_ACTIVATION_BYTES = 2  # BF16 between kernels, whatever the weights are in


class LawConstants(NamedTuple):
    """What one kernel on one system is like."""

    launch_s: float
    bandwidth_share: float  # of the datasheet's peak
    compute_share: float  # of the datasheet's dense peak
    tile_s: float  # overhead of a tile, over all units at work at once
    passes: float  # how often activations are read or written
    blocks: float  # column blocks that saturate the memory


class Peaks(NamedTuple):
    """Datasheet figures of one device for one weight format."""

    bytes_per_s: float
    flop_per_s: float
    weight_bytes: float  # a weight, scales included


def law_seconds(kernel: str, constants: LawConstants, peaks: Peaks, work: RankWork) -> Floats:
    """Seconds [points] of one layer's routed experts on one rank."""
    rows, columns = tile_of(kernel, work)
    padded = padded_rows(work, rows)
    read_bytes, tiles = np.zeros(padded.shape), np.zeros(padded.shape)
    for outputs, inputs in ((2 * work.width, work.shape.hidden), (work.shape.hidden, work.width)):
        column_blocks = np.ceil(outputs / columns)
        tiles += padded / rows * column_blocks
        filled = np.maximum(work.distinct * column_blocks / constants.blocks, 1e-9)
        weights = work.distinct * outputs * inputs * peaks.weight_bytes * (1 - work.cached)
        read_bytes += weights * (1 + filled**-4.0) ** 0.25
    flop = 6.0 * padded * work.shape.hidden * work.width
    return (
        constants.launch_s
        + read_bytes / (constants.bandwidth_share * peaks.bytes_per_s)
        + flop / (constants.compute_share * peaks.flop_per_s)
        + constants.tile_s * tiles
        + constants.passes * _activation_bytes(kernel, peaks, work) / peaks.bytes_per_s
    )


def roofline_seconds(peaks: Peaks, work: RankWork) -> Floats:
    """Seconds [points] below which no kernel can be: weights read once, no row padded."""
    weights = 3.0 * work.shape.hidden * work.width
    read_s = work.distinct * weights * peaks.weight_bytes / peaks.bytes_per_s
    return np.maximum(read_s, 2 * work.load * weights / peaks.flop_per_s)


def _activation_bytes(kernel: str, peaks: Peaks, work: RankWork) -> Floats:
    """Bytes of activations [points] at one pass.

    CUTLASS kernels copy each (token, expert) pair to its expert's rows and back, as wide as the
    weights are; of the others tables show tokens alone.
    """
    width = min(peaks.weight_bytes / _ACTIVATION_BYTES, 1)
    copied = 2 * work.tokens + 4 * width * work.load
    vectors = copied if is_cutlass(kernel) else 6 * work.tokens
    return vectors * work.shape.hidden * _ACTIVATION_BYTES
