"""The loop that every quantized weight goes through. Import this only where it is called."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

_TYPES = "void(uint8[:,::1], float32[:,::1], float32[:,:], float32[:,:], int64, float32[:,::1])"


@njit(_TYPES, cache=True, nogil=True)  # type: ignore[untyped-decorator]
def dequantize(
    codes: NDArray[np.uint8],
    values: NDArray[np.float32],
    centres: NDArray[np.float32],
    scales: NDArray[np.float32],
    side: int,
    out: NDArray[np.float32],
) -> None:
    """`out` [rows, columns] = (value - centre) * scale, each in float32.

    A byte of `codes` [rows, bytes] stands for one column or two: `values` [256, 1 or 2]. `side`
    bytes share a centre and a scale, [rows, groups]; the last of them may be fewer.
    """
    rows, width = codes.shape
    pairs = values.shape[1] == 2
    for row in range(rows):
        for group in range(scales.shape[1]):
            centre, scale = centres[row, group], scales[row, group]
            begin, end = group * side, min(width, (group + 1) * side)
            if pairs:
                for at in range(begin, end):
                    code = codes[row, at]
                    out[row, 2 * at] = (values[code, 0] - centre) * scale
                    out[row, 2 * at + 1] = (values[code, 1] - centre) * scale
            else:
                for at in range(begin, end):
                    out[row, at] = (values[codes[row, at], 0] - centre) * scale
