"""The recording that ships is what its page says it is."""

from __future__ import annotations

import hashlib
from pathlib import Path

from moeprof.analysis import analyze_specialization
from moeprof.trace import open_trace, validate_trace

TRACES = Path(__file__).parents[2] / "traces"
RECORDING = TRACES / "tiny-m3.moetrace"


def test_its_files_are_those_that_were_recorded() -> None:
    for line in (TRACES / "SHA256SUMS").read_text().splitlines():
        digest, name = line.split()
        assert hashlib.sha256((TRACES / name).read_bytes()).hexdigest() == digest


def test_it_is_sound_small_and_large_enough() -> None:
    info = validate_trace(RECORDING)
    assert info.problems == []
    assert info.dropped == {}
    assert info.tokens >= 100_000
    assert info.prefill_tokens and info.decode_tokens
    assert info.requests >= 300
    assert len(info.labels) == 7
    assert (info.layers, info.experts, info.top_k) == (8, 64, 4)
    assert info.bytes < 10_000_000
    assert not info.token_ids


def test_its_domains_use_different_experts() -> None:
    result = analyze_specialization(open_trace(RECORDING), shuffles=100)
    assert result.specialization > 5 * result.null_p95
