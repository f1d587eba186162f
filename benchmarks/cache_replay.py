"""Cache replay beside libCacheSim and a plain Python loop, on the shape of MiniMax-M3.

    python benchmarks/cache_replay.py            # libcachesim is run where it is installed

57 layers x 128 experts, top-4, 20 million accesses of synthetic routing, a quarter of the experts
resident; the curve also on 1 million tokens. All figures come from one run on this machine.
"""

from __future__ import annotations

import sys
import time
from collections import OrderedDict
from collections.abc import Callable
from importlib.util import find_spec

import numpy as np

from moeprof.cache import lru_curve, replay_cache
from moeprof.model import MoEModel
from moeprof.trace import TokenRows, Trace, synthesize_rows

TOKENS = 87_720  # x 57 x 4 = 20 million accesses
SLOTS = 32
THEIRS = {
    "lru": "LRU",
    "fifo": "FIFO",
    "sieve": "Sieve",
    "lfu": "LFU",
    "arc": "ARC",
    "s3-fifo": "S3FIFO",
    "belady": "Belady",
}
MORE = [
    "clock",
    "slru",
    "2q",
    "w-tinylfu",
    "lfu-perfect",
    "lfu-decayed",
    "lfru",
    "layered-lru",
    "r-star",
]
MORE += ["random", "belady-bypass"]
ASKED = {"lru": 60, "fifo": 60, "sieve": 60, "lfu": 25, "arc": 25, "s3-fifo": 25, "belady": 15}


def million_a_second(accesses: int, run: Callable[[], object], repeats: int = 3) -> float:
    """The best of `repeats`, after one run that compiles."""
    run()
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - start)
    return accesses / best / 1e6


def plain_loop(ids: list[int], slots: int) -> int:
    """Hits of one LRU cache as a script would write it."""
    held: OrderedDict[int, None] = OrderedDict()
    hits = 0
    for item in ids:
        if item in held:
            hits += 1
            held.move_to_end(item)
        else:
            held[item] = None
            if len(held) > slots:
                held.popitem(last=False)
    return hits


def libcachesim_speed(name: str, ids: np.ndarray, slots: int) -> float:
    """Million accesses a second of libCacheSim's own loop over one global cache."""
    import libcachesim

    cache, request = getattr(libcachesim, name)(cache_size=slots), libcachesim.Request()
    request.obj_size = 1
    start = time.perf_counter()
    for index, item in enumerate(ids.tolist()):
        request.obj_id, request.clock_time = item, index
        request.next_access_vtime = index + 1
        cache.get(request)
    return len(ids) / (time.perf_counter() - start) / 1e6


def main() -> None:
    """Print speeds and ratios."""
    model = MoEModel.preset("minimax-m3")
    rows, requests = synthesize_rows(model, TOKENS, prefill=0.0, skew=1.0)
    rows = TokenRows(**{**vars(rows), "step": np.arange(TOKENS)})
    trace = Trace.in_memory(model, rows, requests)
    accesses = rows.experts.size
    layers = len(trace.layers)
    ids = (rows.experts[:4000] + 128 * np.arange(layers)[None, :, None]).ravel()
    start = time.perf_counter()
    plain_loop(ids.tolist(), SLOTS * layers)
    plain = len(ids) / (time.perf_counter() - start) / 1e6
    print(f"{'':<28}{'million accesses/s':>19}{'asked':>7}{'x plain':>9}")
    print(f"{'plain Python LRU, global':<28}{plain:19.2f}{'':>7}{1:9.0f}")
    for scope, floor in (("layer", 180), ("global", 15)):
        speed = million_a_second(accesses, lambda scope=scope: lru_curve(trace, scope=scope))
        print(f"{'LRU curve, ' + scope:<28}{speed:19.1f}{floor:7}{speed / plain:9.0f}")
    for policy in [*THEIRS, *MORE]:
        for scope, slots in (("layer", SLOTS), ("global", SLOTS * layers)):
            for contract in ("atomic", "sequential") if policy == "lru" else ("atomic",):
                speed = million_a_second(
                    accesses,
                    lambda p=policy, s=slots, o=scope, c=contract: replay_cache(
                        trace, policy=p, slots=s, scope=o, contract=c
                    ),
                )
                name = f"{policy}, {scope}, {contract}"
                print(f"{name:<28}{speed:19.1f}{ASKED.get(policy, ''):>7}{speed / plain:9.0f}")
                sys.stdout.flush()
        if policy in THEIRS and find_spec("libcachesim"):
            theirs = libcachesim_speed(THEIRS[policy], ids, SLOTS * layers)
            print(f"{'  libcachesim, from Python':<28}{theirs:19.2f}{'':>7}{theirs / plain:9.1f}")


if __name__ == "__main__":
    main()
