"""The link that experts come over, in experts a layer: stated, or of a machine."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moeprof.errors import InputError
from moeprof.hardware import load_hardware
from moeprof.quantity import Provenance, Quantity

_UNIT = "experts/layer"


class Link(NamedTuple):
    """How many experts come while one layer computes; None: they come at once."""

    rate: Quantity | None
    layer_ms: Quantity | None = None

    def transfer(self, sizes: NDArray[np.int64] | None, layers: int) -> NDArray[np.float64]:
        """[layers] what one expert of each layer takes, in times that a layer computes for."""
        if self.rate is None:
            return np.zeros(layers)
        share = np.ones(layers) if sizes is None else sizes / sizes.mean()
        return share / self.rate.value

    def stall_ms(self, layers_per_token: float) -> Quantity | None:
        """A stall in milliseconds, where the time of a layer is known."""
        if self.layer_ms is None or self.rate is None:
            return None
        weakest = max(self.layer_ms.provenance, self.rate.provenance, key=lambda p: p.rank)
        value = layers_per_token * self.layer_ms.value
        # Its band would need the replay at both ends of the link's.
        exact = weakest in (Provenance.MEASURED, Provenance.SPECIFIED)
        return Quantity(
            value, "ms/token", Provenance.ASSUMED if exact else weakest,
            source=f"replay; {self.rate.source}",
        )  # fmt: skip


def make_link(
    experts_per_layer: float | None,
    hardware: str | None,
    layer_ms: float | None,
    sizes: NDArray[np.int64] | None,
) -> Link:
    """The link of `experts_per_layer`, or of `hardware` with a layer that computes for `layer_ms`.

    Raises InputError for half a description, two of them, or what is not above 0.
    """
    for name, value in (("link experts per layer", experts_per_layer), ("layer ms", layer_ms)):
        if value is not None and not 0 < value < math.inf:
            raise InputError(f"{name} {value}: a number above 0 is needed")
    if hardware is None:
        return _stated(experts_per_layer, layer_ms)
    if experts_per_layer is not None:
        raise InputError("give the link as experts per layer or as hardware, not both")
    if layer_ms is None:
        raise InputError(f"hardware {hardware}: also say for how long a layer computes (layer_ms)")
    if sizes is None:
        raise InputError("the model's tensors are not known: give the link in experts per layer")
    bandwidth = load_hardware(hardware).host_link_rate
    factor = layer_ms / 1000 / float(sizes.mean())
    ends = [None if end is None else end * factor for end in (bandwidth.low, bandwidth.high)]
    source = f"{hardware}: {bandwidth.source}"
    value = bandwidth.value * factor
    rate = Quantity(value, _UNIT, bandwidth.provenance, ends[0], ends[1], source)
    return Link(rate, _layer(layer_ms))


def _stated(experts_per_layer: float | None, layer_ms: float | None) -> Link:
    time = None if layer_ms is None else _layer(layer_ms)
    if experts_per_layer is None:
        return Link(None, time)
    return Link(Quantity(experts_per_layer, _UNIT, Provenance.SPECIFIED, source="stated"), time)


def _layer(layer_ms: float) -> Quantity:
    return Quantity(layer_ms, "ms/layer", Provenance.SPECIFIED, source="stated")
