"""What a token costs at the hourly price of its GPUs."""

from __future__ import annotations

from moeprof.hardware import Cluster
from moeprof.quantity import Provenance, Quantity

_MILLION, _HOUR_S = 1e6, 3600.0


def cost_per_million(cluster: Cluster, rate: Quantity) -> Quantity | None:
    """USD of a million tokens at `rate` tokens/s, every GPU of `cluster` paid for by the hour.

    The band is that of rate and price together. None where nobody states a price by the hour.
    """
    name = "price_usd_per_gpu_hour"
    if name not in cluster.profile.figures or not rate.value:
        return None
    price = cluster.profile.figure(name)
    least = price.value if price.low is None else price.low
    most = price.value if price.high is None else price.high
    scale = cluster.gpus * _MILLION / _HOUR_S
    return Quantity(
        scale * price.value / rate.value,
        "USD",
        max(price.provenance, rate.provenance, Provenance.FITTED, key=lambda p: p.rank),
        None if rate.high is None else scale * least / rate.high,
        None if not rate.low else scale * most / rate.low,
        f"{price.source}; {rate.source}",
    )
