"""Four public reports on expert caches that contradict each other, replayed side by side.

    python benchmarks/cache_reports.py RECORDINGS [ROUTE_TRACES]

RECORDINGS holds `*_coffee*.csv.gz`, `*_json*.csv.gz` and `*_python*.csv.gz` of DeepSeek-V4-Flash,
published by github.com/imanu86/reap-loop (MIT) at 7c90f35d; ROUTE_TRACES is
`docs/bench-data/2026-07-15-route-trace` of github.com/Helldez/BigMoeOnEdge (Apache-2.0). The
reports' own figures stand beside the replay at the same share of a token cycle or of all experts.
docs/cache-reports.md says what the table shows.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from moeprof.analysis import analyze_locality
from moeprof.cache import CacheReplays, replay_cache
from moeprof.trace import Trace, open_trace
from moeprof.trace.formats import import_trace

MIXED = ("podA_a_coffee_full", "podA_b2_json_long_full", "podA_c2_python_long_full")
ONE = "k0_coffee"
SHORT = "podA_c2_python_long_full"
POLICIES = ("lru", "lfu", "static", "static-hindsight", "belady-bypass")
BUDGETS = (("gptoss", 1000), ("gptoss", 2000), ("gptoss", 3000), ("qwen", 2000), ("qwen", 4000))
COLD = tuple(name for name in POLICIES if name != "static")  # nothing is fitted, all steps count


def heading(text: str) -> None:
    """A report and what it said."""
    print(f"\n{text}")
    print(f"  {'':<52}{'cycles':>7}{'steps held':>11}" + "".join(f"{p:>17}" for p in POLICIES))


def line(name: str, replays: CacheReplays) -> None:
    """One replay: how much of a token's and of a step's need the slots are, and what was hit."""
    slots = replays.rows[0].slots * (1 if replays.rows[0].scope == "global" else replays.layers)
    step = replays.experts_per_event * replays.layers
    hits = {row.policy: 100 * row.hit_ratio for row in replays.rows}
    cells = "".join(f"{hits[p]:16.1f}%" if p in hits else f"{'-':>17}" for p in POLICIES)
    print(f"  {name:<52}{slots / replays.token_cycle:7.2f}{slots / step:11.2f}{cells}")


def joined(folder: Path, names: Sequence[str], scratch: str) -> Trace:
    """Several recordings as one, in order."""
    import_trace([folder / f"{name}.csv.gz" for name in names], f"{scratch}/mixed.moetrace")
    return open_trace(f"{scratch}/mixed.moetrace")


def layer_slots(trace: Trace, share: float) -> int:
    """Slots of a layer that hold `share` of its experts."""
    return max(round(share * trace.experts_per_layer), 1)


def llamacpp(one: Trace, mixed: Trace) -> None:
    """Per-layer LRU, misses computed on the CPU; static lists judged on the other half."""
    heading(
        "ggml-org/llama.cpp PR 27861 (512 experts, top-10): a list of 6.2 % learned on half of a "
        "mixed\nworkload covers 10 % of the other half; LRU with 12.5 / 25 % hits 67 / 81 %"
    )
    for share in (0.0625, 0.125, 0.25):
        for name, trace in (("one text", one), ("three texts in turn", mixed)):
            replays = replay_cache(trace, policy=POLICIES, slots=layer_slots(trace, share))
            line(f"{name}, per layer, {100 * share:.1f} % resident", replays)


def freetoken(one: Trace, mixed: Trace) -> None:
    """Global LRU at 1.9 token cycles, by how many requests share a step."""
    heading(
        "FlashML-org/FreeToken #174 (DeepSeek-V4-Flash): 700 global slots of 61 x 256, 1.9 token "
        "cycles:\nLRU hits 8 to 18 %, the most used experts in hindsight 46 %"
    )
    slots = round(1.9 * len(one.layers) * one.top_k)
    for name, trace, requests in (
        ("one text", one, 1),
        ("three texts, one after another", mixed, 1),
        ("two texts at a time", mixed, 2),
        ("three texts at a time", mixed, 3),
    ):
        replays = replay_cache(
            trace, policy=POLICIES, slots=slots, scope="global", max_num_seqs=requests
        )
        line(f"{name}, global", replays)


def imp(short: Trace, mixed: Trace) -> None:
    """Per-layer LRU from a cold start, over a short text and over a longer run of three."""
    heading(
        "kekzl/imp PR 2061 (512 experts, top-10; 300 tokens from cold): LRU with 18 / 36 / 73 / "
        "100 %\nhits 43.5 / 62.0 / 78.9 / 85.0 %; pinning half of the slots 2 to 3 points less"
    )
    for share in (0.18, 0.36, 1.0):
        for name, trace in (("one short text", short), ("three texts in turn", mixed)):
            replays = replay_cache(trace, policy=COLD, slots=layer_slots(trace, share))
            line(f"{name}, from cold, {100 * share:.0f} % resident", replays)


def big_moe_on_edge(folder: Path) -> None:
    """One pool under a byte budget, prompts included, under the engine's own contract."""
    heading(
        "Helldez/BigMoeOnEdge #33: 8 to 9 % hits for gpt-oss-120b in 2000 MiB, 74.9 % for "
        "Qwen3-30B-A3B\nin 4000 MiB: is the policy to blame?"
    )
    for name, budget in (
        ("gptoss", 1000),
        ("gptoss", 2000),
        ("gptoss", 3000),
        ("qwen", 2000),
        ("qwen", 4000),
    ):
        file = folder / f"{name}.route.csv"
        found = re.findall(r"^# layer=(\d+) expert_bytes=(\d+)", file.read_text(), re.MULTILINE)
        trace = open_trace(file)
        sizes = {int(layer): int(size) for layer, size in found if int(layer) in trace.layers}
        replays = replay_cache(
            trace,
            policy=COLD,
            budget_bytes=budget << 20,
            scope="global",
            expert_bytes=sizes,
        )
        line(f"{name} (top-{trace.top_k} recorded), {budget} MiB", replays)


def main() -> None:
    """Print one table a report."""
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    folder = Path(sys.argv[1])
    with TemporaryDirectory() as scratch:
        one, mixed = open_trace(folder / f"{ONE}.csv.gz"), joined(folder, MIXED, scratch)
        for name, trace in (("one text", one), ("three texts", mixed)):
            locality = analyze_locality(trace)
            print(
                f"{name}: {trace.tokens} tokens, {len(trace.layers)} layers, top-{trace.top_k} of "
                f"{trace.experts_per_layer}; the next token repeats "
                f"{100 * (locality.next_token_repeat or 0):.0f} % of its experts"
            )
        llamacpp(one, mixed)
        freetoken(one, mixed)
        imp(open_trace(folder / f"{SHORT}.csv.gz"), mixed)
    if len(sys.argv) == 3:
        big_moe_on_edge(Path(sys.argv[2]))


if __name__ == "__main__":
    main()
