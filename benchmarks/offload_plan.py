"""How fast are the misses of a trace turned into seconds, beside a plain loop over events?

    python benchmarks/offload_plan.py

The shape of MiniMax-M3 (57 layers, top-4), 200,000 steps of one token, made-up misses. The loop
does the arithmetic of `--serve copy` for each event with Python's floats; ours times each kind of
event once. Both give the same seconds, or this fails.
"""

from __future__ import annotations

import numpy as np
from timing import best_of

from moeprof.hardware import load_hardware
from moeprof.model import MoEModel
from moeprof.offload import DecodeWork, Serve, Service, Speeds, decode_work, find_rates
from moeprof.offload.stepping import time_steps
from moeprof.offload.traffic import Traffic

LAYERS, STEPS, TOP_K = 57, 200_000, 4


def made_up() -> Traffic:
    """Misses of a cache that hits two thirds."""
    missed = np.random.default_rng(0).binomial(TOP_K, 1 / 3, (LAYERS, STEPS))
    return Traffic(
        needed=np.full_like(missed, TOP_K),
        missed=missed,
        stored=np.zeros_like(missed),
        step_tokens=np.ones(STEPS, np.int64),
        load_ratio=1.0,
        fit_steps=0,
        sequences=1.0,
    )


def by_loop(traffic: Traffic, work: DecodeWork, at: Speeds) -> float:
    """Seconds of all events, one by one."""
    total, expert = 0.0, work.expert_bytes / at.hbm
    shared, copy = work.shared_bytes / at.hbm, work.expert_bytes / at.link + at.copy_latency_s
    for row in traffic.missed.tolist():
        for missed in row:
            held = shared + (TOP_K - missed) * expert
            total += at.kernel_s + max(held, missed * copy) + missed * expert
    return total


def main() -> None:
    """Compare, time, print."""
    traffic, work = made_up(), decode_work(MoEModel.preset("minimax-m3"), "q4_k")
    at = find_rates(load_hardware("rtx-4090+epyc-9005")).at("middle")._replace(flops=None)
    outside = (work.dense_bytes + work.kv_bytes) / at.hbm + at.step_s + work.layers * at.layer_s
    ours = time_steps(traffic, work, at, Service(Serve.COPY)).seconds.sum() - STEPS * outside
    if not np.isclose(ours, by_loop(traffic, work, at), rtol=1e-9):
        raise SystemExit(f"the seconds differ: {ours}")
    took = best_of(
        2,
        loop=lambda: by_loop(traffic, work, at),
        copy=lambda: time_steps(traffic, work, at, Service(Serve.COPY)),
        cpu=lambda: time_steps(traffic, work, at, Service(Serve.CPU)),
        auto=lambda: time_steps(traffic, work, at, Service(Serve.AUTO)),
    )
    print(f"{LAYERS * STEPS:,} events, a plain loop: {took['loop']:.2f} s")
    for serve in Serve:
        faster = took["loop"] / took[serve]
        print(f"--serve {serve}: {took[serve]:.2f} s, {faster:.1f} x as fast as the loop")


if __name__ == "__main__":
    main()
