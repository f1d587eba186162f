"""What a vision tower takes while an engine tries the longest video that it accepts."""

from __future__ import annotations

from math import prod

from moeprof.model import MoEModel

_BYTES = 2  # BF16
# vLLM tries a video of 500 frames of 602,112 pixels at start-up, two frames and 14 x 14 pixels a
# patch, unless videos are limited: _MAX_FRAMES_PER_VIDEO in vllm/models/minimax_m3/common/
# mm_preprocess.py at https://github.com/vllm-project/vllm (192,000 tokens of 2 x 2 patches).
_PATCHES = {"minimax_m3_vl": 500 // 2 * 602_112 // 14**2}
_MERGED = 4  # patches a token
ENCODER_SOURCE = (
    "a video of 768,000 patches through the vision tower at start-up, as "
    "vllm/models/minimax_m3/common at https://github.com/vllm-project/vllm does it"
)


def encoder_peak_bytes(model: MoEModel, tp: int) -> float:
    """Most that the longest video takes on one of `tp` ranks; 0 where nobody stated its length.

    Held throughout: pixels and hidden states. Beside them the larger of attention (input, queries,
    keys and values of the rank's heads, and queries and keys again in BF16 and, before and after
    their rotation, in FP32) and of the projector (its inner states, its output, and on several
    ranks the output again for the sum).
    """
    widths = _widths(model)
    if widths is None:
        return 0.0
    pixels, hidden, inner, out = widths
    attention = hidden + hidden * (3 + 2 + 2 * 2 * 2) / tp
    projector = inner / tp + out * (2 if tp > 1 else 1)
    return _BYTES * _PATCHES[model.model_type] * (pixels + hidden + max(attention, projector))


def encoder_output_bytes(model: MoEModel) -> float:
    """Of that video's tokens, which are kept while the language model is tried."""
    widths = _widths(model)
    if widths is None:
        return 0.0
    return _BYTES * _PATCHES[model.model_type] / _MERGED * widths[-1]


def _widths(model: MoEModel) -> tuple[int, int, int, int] | None:
    """(pixels a patch, hidden size, inner and outer width of the projector)."""
    shapes = {g.name: g.shape for g in model.tensors if g.tensor_class == "vision"}
    if model.model_type not in _PATCHES or "patch_embedding" not in shapes:
        return None
    hidden, *patch = shapes["patch_embedding"]
    return prod(patch), hidden, shapes["projector_1"][0], shapes["projector_2"][0]
