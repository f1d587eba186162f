"""KTransformers on Qwen3-Next-80B-A3B-FP8: how speed grows with the experts on the GPUs.

4 x RTX 4090 (TP4) and a Xeon 6454S, ShareGPT; three speeds are known. The audit's constants predict
them; then the two ends correct the GPUs' part and the CPU's part by a factor each, and the middle
judges.
"""

from __future__ import annotations

from math import sqrt
from typing import NamedTuple

from .pages import table
from .residency import POPULARITY, miss_ratio
from .runs import Band, Shape
from .setup import Part, Setup

MEASURED = {0: 53.0, 256: 65.3, 512: 112.3}  # tok/s by experts a layer on the GPUs, spread evenly
SOCKET = 8 * 4800e6 * 8.0  # bytes/s of eight channels of DDR5-4800; one socket or two is not said
SETUP = Setup(
    # https://huggingface.co/Qwen/Qwen3-Next-80B-A3B-Instruct config.json: 36 layers of linear
    # attention and 12 of full attention (1.54 billion), shared experts and routers (0.20 billion).
    Shape("qwen3-next-80b-a3b", 48, 48, 512, 10, 3 * 2048 * 512, 1_742_000_000, 151936 * 2048),
    expert_bits=8,
    dense_bits=8,
    gpu_rate=4 * 1.008e12,
    host=Band(SOCKET * sqrt(2), SOCKET, SOCKET * 2),
    # Two all-reduces a layer over PCIe: 29.8 us each for 16k elements on 8 RTX PRO 6000
    # (aiconfigurator-core 0.12.0's tables); TP4 of 2,048 elements is taken to cost the same.
    joined_s=2 * 29.8e-6,
)


class Correction(NamedTuple):
    """Factors on the two parts of a token's time."""

    gpu: float
    cpu: float

    def tok_s(self, part: Part) -> float:
        """Speed with both."""
        return 1 / (self.gpu * part.gpu_s + self.cpu * part.cpu_s)


def correct() -> Correction:
    """The factors that meet the two ends."""
    none, whole = SETUP.part(0.0), SETUP.part(1.0)
    gpu = 1 / (MEASURED[512] * whole.gpu_s)
    return Correction(gpu, (1 / MEASURED[0] - gpu * none.gpu_s) / none.cpu_s)


def hits_at(experts: int, popularity: float = 0.0) -> float:
    """Hit ratio of `experts` a layer on the GPUs: spread evenly, or the popular ones."""
    return 1 - miss_ratio(experts / 512, SETUP.shape, popularity)


def measured_page() -> str:
    """Prediction by the audit's constants, and after the ends corrected it."""
    correction = correct()
    lines = []
    for experts, speed in MEASURED.items():
        band = SETUP.tok_s(hits_at(experts))
        fitted = correction.tok_s(SETUP.part(hits_at(experts)))
        lines.append(
            (
                f"{experts} of 512",
                f"{speed:g}",
                f"{band.value:.1f}",
                f"{band.value / speed - 1:+.0%}",
                f"{band.low:.0f} to {band.high:.0f}",
                f"{fitted:.1f}" + (f" ({fitted / speed - 1:+.0%})" if experts == 256 else ""),
            )
        )
    head = ("experts a layer", "tok/s", "predicted", "error", "band", "with both ends met")
    return table(head, lines)


def curve_page() -> str:
    """Speed by experts on the GPUs, even and by frequency, with both ends met."""
    correction = correct()
    lines = []
    for experts in range(0, 513, 32):
        even = SETUP.part(hits_at(experts))
        low, middle, high = (
            correction.tok_s(SETUP.part(hits_at(experts, at)))
            for at in (POPULARITY.low, POPULARITY.value, POPULARITY.high)
        )
        whole = hits_at(experts) ** SETUP.shape.top_k
        lines.append(
            (
                experts,
                f"{whole:.1%}",
                f"{SETUP.part(hits_at(experts)).tok_s:.1f}",
                f"{correction.tok_s(even):.1f}",
                f"{middle:.1f} ({low:.1f} to {high:.1f})",
            )
        )
    return table(
        (
            "experts a layer",
            "layers without a miss",
            "even, predicted",
            "even, ends met",
            "by frequency, ends met",
        ),
        lines,
    )


def explanation() -> str:
    """Why half of the experts gains so little, in the law's own figures."""
    part = SETUP.part(0.5)
    none = SETUP.part(0.0)
    layer = SETUP.shape.moe_layers
    fixed = _hand_over()
    return (
        f"With half of the experts a token still misses 5 of 10 in the mean, and "
        f"{1 - 0.5**10:.1%} of layers miss one at least. The CPU's share falls from "
        f"{none.cpu_s * 1e3:.1f} to {part.cpu_s * 1e3:.1f} ms only, because handing a layer over "
        f"costs {fixed * 1e6:.0f} us whether one expert is missing or ten: "
        f"{layer * fixed * 1e3:.1f} of those {none.cpu_s * 1e3:.1f} ms. The three speeds "
        f"themselves, taken as a cost a layer and a cost an expert, say {_solved()}."
    )


def _hand_over() -> float:
    from .prediction import stated

    return stated("cpu_layer_s", "middle")


def _solved() -> str:
    """The cost of a layer that misses and of an expert missed, exactly from the three speeds."""
    none, half, whole = (1 / MEASURED[experts] for experts in (0, 256, 512))
    missing = 1 - 0.5**10
    layer = (2 * (half - whole) - (none - whole)) / (2 * missing - 1)
    each = (none - whole - layer) / 10
    rate = SETUP.shape.expert_parameters / (each / SETUP.shape.moe_layers)
    return (
        f"{layer / 48 * 1e6:.0f} us a layer and {each / 48 * 1e6:.0f} us an expert, "
        f"which is {rate / 1e9:.0f} GB/s"
    )
