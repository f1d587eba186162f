"""From misses to seconds: experts in GPU memory, host memory and on drives, on a timeline."""

from moeprof.offload.estimate import DecodeEstimate, estimate_decode, spread_misses
from moeprof.offload.rates import Rates, Speeds, constant, find_rates, product
from moeprof.offload.timing import RESOURCES, LayerTimes, Serve, time_layers
from moeprof.offload.work import DecodeWork, decode_work

__all__ = [
    "RESOURCES",
    "DecodeEstimate",
    "DecodeWork",
    "LayerTimes",
    "Rates",
    "Serve",
    "Speeds",
    "constant",
    "decode_work",
    "estimate_decode",
    "find_rates",
    "product",
    "spread_misses",
    "time_layers",
]
