"""How much of what differs between windows is more than chance."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def signal_share(windows: NDArray[np.float64]) -> float:
    """The share of the variance between `windows` [windows, experts] that chance does not explain.

    Windows are counts. With n[w] assignments in window w and the pooled shares p[e], Pearson's
    sum over w and e of (c[w, e] - n[w] p[e])^2 / (n[w] p[e]) is (W - 1)(E - 1) on average where
    windows differ by chance alone; what exceeds that is signal. 0 for one window.
    """
    used = windows[windows.any(axis=1)][:, windows.any(axis=0)]
    size = used.sum(axis=1, keepdims=True)
    expected = size * used.sum(axis=0) / size.sum()
    found = float(((used - expected) ** 2 / expected).sum())
    by_chance = (used.shape[0] - 1) * (used.shape[1] - 1)
    return max(0.0, 1.0 - by_chance / found) if found > 0 else 0.0
