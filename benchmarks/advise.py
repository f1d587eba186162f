"""How long does an advice take, and how much is saved by looking at memory last?

Beside it stands the plain search that projects every split with its memory; both must find the same
best split of every hardware and precision.

    python benchmarks/advise.py
"""

from __future__ import annotations

import time

from moeprof import LatencyTargets, advise_deployment, plan_traffic, shipped_laws
from moeprof.model import load_model
from moeprof.projection.advice.search import Search, best_splits

QUESTIONS = (["8xh200", "8xb200"], ["h200", "b200", "rtx-pro-6000"])


def main() -> None:
    """Print seconds and the ratio."""
    model = load_model("minimax-m3")
    traffic, targets = plan_traffic(model), LatencyTargets(30, 2000)
    advise_deployment(model, ["8xh200"], targets, traffic)  # files are read once
    for hardware in QUESTIONS:
        search = Search(model, hardware, "vllm", traffic, targets, shipped_laws())
        quick = [each[0].command for group in search.groups() if (each := best_splits(group))]
        start = time.perf_counter()
        every = []
        for group in search.groups():
            options = [option for option in (each.option() for each in group) if option is not None]
            options.sort(key=lambda option: -option.output_tok_s.value)
            every += [options[0].command] if options else []
        plain = time.perf_counter() - start
        assert quick == every
        start = time.perf_counter()
        advice = advise_deployment(model, hardware, targets, traffic)
        seconds = time.perf_counter() - start
        print(
            f"{', '.join(hardware)}: {advice.searched} deployments, advice in {seconds:.2f} s with "
            f"levers and tornado; the plain search alone {plain:.2f} s, {plain / seconds:.1f} x"
        )


if __name__ == "__main__":
    main()
