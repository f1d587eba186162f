"""How far off are times of MoE kernels? Every system, engine, kernel and format, four ways.

    python benchmarks/moe_kernels.py           # print the page, three minutes of one core
    python benchmarks/moe_kernels.py --write   # also write kernels.toml and docs/validation

Nothing is drawn; the same tables give the same constants, bands and page.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.kernel_fit.fitting import Timed, fit_law, timed_groups  # noqa: E402
from benchmarks.kernel_fit.judging import (  # noqa: E402
    Donor,
    cells_out,
    donor_law,
    routing_out,
    tokens_out,
)
from benchmarks.kernel_fit.report import (  # noqa: E402
    Judged,
    constants_file,
    law_page,
    miss,
    system_page,
    table_page,
)
from moeprof.projection.moe_kernels.tables import ROUTINGS, timed_versions  # noqa: E402

PAGE = ROOT / "docs" / "validation" / "moe_kernels.md"
CONSTANTS = ROOT / "moeprof" / "projection" / "moe_kernels" / "kernels.toml"


def judge(timed: Timed) -> Judged:
    """All but the systems of one group."""
    law, table = tokens_out(timed)
    return Judged(
        timed=timed,
        version=timed_versions()[timed.group],
        constants=fit_law(timed),
        law_tokens=law,
        table_tokens=table,
        table_routings={name: routing_out(timed, name) for name in ROUTINGS},
        law_cells=cells_out(timed),
        law_system=np.zeros(0),
        donor=Donor("", False),
    )


def judge_all() -> list[Judged]:
    """Every group, in the order of the table."""
    judged = []
    for timed in timed_groups():
        judged.append(judge(timed))
        print(f"judged {judged[-1].label}", file=sys.stderr, flush=True)
    fitted = {one.timed.group: one.constants for one in judged}
    for one in judged:
        one.law_system, one.donor = donor_law(one.timed, fitted)
    return judged


def page(judged: list[Judged]) -> str:
    """The validation page."""
    pooled = {
        name: np.concatenate([j.table_routings[name].ravel() for j in judged]) for name in ROUTINGS
    }
    tokens = np.concatenate([j.table_tokens.ravel() for j in judged])
    summary = ", ".join(f"{miss(logs):.1f} % on {name}" for name, logs in pooled.items())
    template = (Path(__file__).parent / "kernel_fit" / "page.md").read_text()
    return template.format(
        tokens=f"{miss(tokens):.1f}",
        routings=summary,
        table=table_page(judged),
        law=law_page(judged),
        system=system_page(judged),
    )


def run() -> None:
    """Print the page; write it and the constants if asked."""
    judged = judge_all()
    text = page(judged)
    print(text)
    if "--write" in sys.argv:
        CONSTANTS.write_text(constants_file(judged))
        PAGE.parent.mkdir(exist_ok=True)
        PAGE.write_text(text)


if __name__ == "__main__":
    run()
