"""Recording counts alone: of the same run they are those of a full recording."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moeprof.analysis.counting import count_experts
from moeprof.capture import record
from moeprof.errors import InputError
from moeprof.trace import open_trace, validate_trace

GENERATE = {"max_new_tokens": 4, "eos_token_id": None, "pad_token_id": 0}


def test_counts_are_those_of_a_full_recording(
    m3: Any, padded: tuple[Any, Any], tmp_path: Path
) -> None:
    def run() -> Any:
        return m3.generate(padded[0], attention_mask=padded[1], **GENERATE).tolist()

    with record(m3, tmp_path / "full") as full:
        plain = run()
    with record(m3, tmp_path / "counts", aggregate_steps=2, labels="a label") as counts:
        assert run() == plain
    assert counts.error is None and counts.dropped == 0
    assert (counts.prefill_tokens, counts.decode_tokens) == (
        full.prefill_tokens,
        full.decode_tokens,
    )
    found, expected = (
        count_experts(open_trace(tmp_path / name), 1).by_phase() for name in ("counts", "full")
    )
    assert found.keys() == expected.keys() == {"prefill", "decode"}
    for phase, load in expected.items():
        np.testing.assert_array_equal(found[phase], load)
    info = validate_trace(tmp_path / "counts")
    assert (info.problems, info.tokens, info.windows) == ([], full.tokens, 2)
    files = sorted(f.name for f in (tmp_path / "counts").rglob("*") if f.is_file())
    assert files == ["000000.arrows", "manifest.json"]


def test_what_counts_cannot_hold_is_refused_before_anything_runs(m3: Any, tmp_path: Path) -> None:
    for options, sentence in (
        ({"aggregate_steps": 0}, "aggregate_steps is 0, it must be at least 1"),
        ({"aggregate_steps": 9, "weights": True}, "leave out weights"),
    ):
        with pytest.raises(InputError, match=sentence), record(m3, tmp_path / "t", **options):
            pass
        assert not (tmp_path / "t").exists()
