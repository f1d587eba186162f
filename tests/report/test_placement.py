"""The section on placement shows what the judge found, and says why where it found nothing."""

from __future__ import annotations

import pytest

from moeprof.hardware import load_hardware
from moeprof.placement import Topology
from moeprof.placement.fitting import fit_placement
from moeprof.placement.windows import split_windows
from moeprof.report import gather_report
from moeprof.report.placing import EPLB, ORDER, PLACED, SPARE, compared_placements
from moeprof.report.sections.placement import placement_section
from moeprof.trace import Trace, open_trace
from tests.recordings import SHIPPED


def test_the_maps_are_fitted_on_the_first_half_and_judged_on_the_second() -> None:
    trace, missing = open_trace(SHIPPED), dict[str, str]()
    found = compared_placements(trace, load_hardware("8xh200"), "fp8", missing)
    assert found is not None and not missing
    windows = split_windows(trace)
    for name, solver in ((ORDER, "linear"), (EPLB, "eplb"), (PLACED, "best")):
        placement = fit_placement(trace, windows, Topology.even(8, 64), solver=solver)
        judged = found.of(name).imbalance.value
        assert judged == pytest.approx(placement.imbalance(windows.test_load))
    waits = [found.of(name).step_imbalance.value for name in (SPARE, PLACED, EPLB, ORDER)]
    assert waits == sorted(waits)
    assert found.redundant == {ORDER: 0, EPLB: 0, PLACED: 0, SPARE: 8}
    size = trace.model.bytes_per_expert("fp8")
    assert found.redundant_bytes_per_gpu[SPARE] == 8 * 8 * size / 8


def test_the_section_names_the_wait_of_each_map(trace: Trace) -> None:
    section = placement_section(gather_report(trace, hardware="4xh200"))
    assert section is not None
    assert "On 4 GPUs" in section.lead[0]
    assert [block.kind for block in section.blocks] == ["chart", "table"]
    assert len(section.blocks[1].rows) == 4  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("hardware", "words"), [("h200", "one GPU holds all experts"), ("4xh200", "holds")]
)
def test_what_cannot_be_placed_says_why(counts_only: Trace, hardware: str, words: str) -> None:
    section = placement_section(gather_report(counts_only, hardware=hardware))
    assert section is not None
    assert section.blocks == []
    assert section.lead[0].startswith("Not shown: ")
    assert words in section.lead[0]
