"""What a token costs where the machine is bought and not rented, and the energy that it takes."""

from __future__ import annotations

from moeprof.hardware import Cluster
from moeprof.projection.cost import cost_per_million
from moeprof.quantity import Provenance, Quantity

# A bought machine is written off over this time and busy for this part of it; its electricity is
# paid for at full power while busy.
YEARS, BUSY, USD_PER_KWH = 3.0, 0.5, 0.15
ASSUMPTION = (
    f"bought: written off over {YEARS:g} years, busy {BUSY:.0%} of the time, electricity at "
    f"{USD_PER_KWH:g} USD/kWh and full power"
)
_HOURS_A_YEAR, _HOUR_S, _MILLION = 8760.0, 3600.0, 1e6


def token_cost(cluster: Cluster, rate: Quantity) -> Quantity | None:
    """USD of a million tokens at `rate` tokens/s: by the hour, else as `owned_cost`; None where
    neither price is stated."""
    return cost_per_million(cluster, rate) or owned_cost(cluster, rate)


def owned_cost(cluster: Cluster, rate: Quantity) -> Quantity | None:
    """USD of a million tokens on machines that were bought, of which a host is no part."""
    figures = cluster.profile.figures
    if "price_usd" not in figures or not rate.value:
        return None
    price = cluster.profile.figure("price_usd")
    power = cluster.profile.figure("power_w").value if "power_w" in figures else 0.0
    least, most = (price.value if end is None else end for end in (price.low, price.high))
    low, middle, high = (_hourly(each, power) * cluster.gpus for each in (least, price.value, most))
    scale = _MILLION / _HOUR_S
    unpowered = "" if power else "; without electricity: no profile states its power"
    return Quantity(
        scale * middle / rate.value,
        "USD",
        Provenance.ASSUMED,
        None if rate.high is None else scale * low / rate.high,
        None if not rate.low else scale * high / rate.low,
        f"{ASSUMPTION}{unpowered}; {price.source}; {rate.source}",
    )


def energy_per_million(cluster: Cluster, rate: Quantity) -> Quantity | None:
    """Wh of a million tokens at `rate` tokens/s with all GPUs at full power; hosts not counted."""
    if "power_w" not in cluster.profile.figures or not rate.value:
        return None
    power = cluster.profile.figure("power_w")
    scale = power.value * cluster.gpus * _MILLION / _HOUR_S
    return Quantity(
        scale / rate.value,
        "Wh",
        Provenance.ASSUMED,
        None if rate.high is None else scale / rate.high,
        None if not rate.low else scale / rate.low,
        f"all GPUs at full power: {power.source}; {rate.source}",
    )


def _hourly(price_usd: float, power_w: float) -> float:
    """USD of a busy hour."""
    return price_usd / (YEARS * _HOURS_A_YEAR * BUSY) + power_w / 1e3 * USD_PER_KWH
