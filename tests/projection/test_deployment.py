"""A deployment's projection is its ledger and its bound, asked in a planner's words."""

from __future__ import annotations

import pytest

from moeprof.errors import InputError
from moeprof.model import MoEModel
from moeprof.projection import project_deployment, project_memory


def test_m3_in_bf16_on_eight_h200() -> None:
    answer = project_deployment("minimax-m3", "8xh200", concurrency=3, input_len=262_144)
    kv = 262_144 * 3 * 45_312  # 11.06 GiB a request at TP 4 and above
    assert answer.memory["kv"] == kv
    assert answer.memory["total"] == sum(v for k, v in answer.memory.items() if k != "total")
    assert answer.fits is False  # 577,152 tokens of KV is the most
    assert answer.max_concurrency == 2


def test_requests_are_shared_out_over_data_parallel_groups() -> None:
    asked = {"concurrency": 9, "input_len": 1000, "output_len": 24}
    answer = project_deployment("minimax-m3", "8xb200", precision="nvfp4", tp=4, dp=2, **asked)
    direct = project_memory(
        MoEModel.preset("minimax-m3"), "8xb200", precision="nvfp4", tp=4, dp=2,
        tokens=5 * 1024, sequences=5,
    )  # fmt: skip
    assert answer.ledger == direct
    assert answer.max_concurrency == direct.max_kv_tokens // 1024 * 2


@pytest.mark.parametrize(
    "wrong", [{"concurrency": 0}, {"input_len": -1}, {"output_len": -5}, {"dp": 0}, {"tp": 16}]
)
def test_values_out_of_range_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(InputError):
        project_deployment("minimax-m3", "8xh200", **wrong)
