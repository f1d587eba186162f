"""How a projected deployment and its load are called, on the page and in figures."""

from __future__ import annotations

from moeprof.projection import DeploymentProjection
from moeprof.report.projecting import ProjectionStudy
from moeprof.report.wording import counted


def split_name(row: DeploymentProjection) -> str:
    """'TP 8', 'TP 2 x DP 4, EP 8'."""
    split = row.ledger.parallelism
    name = f"TP {split.tp}" if split.dp == 1 else f"TP {split.tp} \u00d7 DP {split.dp}"
    return name if split.ep == 1 else f"{name}, EP {split.ep}"


def digits(value: float) -> str:
    """Three of them."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def deployed(study: ProjectionStudy) -> str:
    """'minimax-m3 in MXFP8 on 8xh200-sxm, TP 8'."""
    ledger = study.chosen.ledger
    where = f"{ledger.model} in {ledger.precision.upper()} on {ledger.hardware}"
    return f"{where}, {split_name(study.chosen)}, {study.chosen.engine}"


def load_words(study: ProjectionStudy) -> str:
    """'64 requests at a time of 1,024 + 1,024 tokens'."""
    traffic = study.traffic
    return (
        f"{counted(traffic.concurrency, 'request')} at a time of {traffic.input_len:,} + "
        f"{traffic.output_len:,} tokens"
    )
