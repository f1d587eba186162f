"""From misses to seconds: experts in GPU memory, host memory and on drives, on a timeline."""

from moeprof.offload.estimate import DecodeEstimate, estimate_decode, spread_misses
from moeprof.offload.memory import OffloadMemory, plan_memory
from moeprof.offload.plan import AUTO_POLICIES, plan_offload
from moeprof.offload.rates import LAUNCHES, Rates, Speeds, constant, find_rates, product
from moeprof.offload.results import OffloadPlan, OffloadRow
from moeprof.offload.timeline import KINDS, TRACKS, draw_timeline
from moeprof.offload.timing import LANES, RESOURCES, LayerTimes, Serve, Service, time_layers
from moeprof.offload.work import DecodeWork, decode_work

__all__ = [
    "AUTO_POLICIES",
    "KINDS",
    "LANES",
    "LAUNCHES",
    "RESOURCES",
    "TRACKS",
    "DecodeEstimate",
    "DecodeWork",
    "LayerTimes",
    "OffloadMemory",
    "OffloadPlan",
    "OffloadRow",
    "Rates",
    "Serve",
    "Service",
    "Speeds",
    "constant",
    "decode_work",
    "draw_timeline",
    "estimate_decode",
    "find_rates",
    "plan_memory",
    "plan_offload",
    "product",
    "spread_misses",
    "time_layers",
]
