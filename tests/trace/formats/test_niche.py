"""Small tools' files, in the layouts of the sources that their modules name."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest

from moeprof.errors import InputError
from moeprof.trace.formats import import_trace, moe_trace_binary
from tests.trace.formats.files import ids_of, imported, routing
from tests.trace.formats.test_engines import saved, tensor


def records(ids: np.ndarray, chunk: int) -> bytes:
    """moe-trace.cpp: for each chunk and layer int32 layer, n_tokens, k, then the ids."""
    out = b""
    for start in range(0, len(ids), chunk):
        for layer in range(ids.shape[1]):
            part = ids[start : start + chunk, layer]
            out += struct.pack("<iii", layer + 3, *part.shape) + part.astype("<i4").tobytes()
    return out


@pytest.mark.parametrize("chunk", [1, 5, 12])
@pytest.mark.parametrize("piece", [64, 1 << 20])
def test_moe_trace_binary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int, piece: int
) -> None:
    monkeypatch.setattr(moe_trace_binary, "PIECE_BYTES", piece)
    ids = routing()
    (tmp_path / "t.bin").write_bytes(records(ids, chunk) + b"\3\0\0\0\1")
    trace, result = imported(tmp_path / "t.bin", tmp_path / "t")
    assert result.format == "moe-trace-binary" and trace.layers == (3, 4, 5)
    assert (ids_of(trace) == ids).all() and trace.manifest.rank_ordered
    assert (trace.step == np.arange(12) // chunk).all() and (trace.request == trace.step).all()
    assert (trace.position == np.arange(12) % chunk).all() and (trace.phase == 0).all()
    assert result.skipped == {"token cut off at the end of the file": 1}


def test_moe_trace_binary_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "t.bin").write_bytes(records(routing(), 4) + struct.pack("<iii", 3, -1, 2))
    with pytest.raises(InputError, match="no layer, tokens and k"):
        import_trace(tmp_path / "t.bin", tmp_path / "t")


def test_routing_lab_archive_is_layers_first(tmp_path: Path) -> None:
    """06_convert_gguf_trace.py: experts (L, T, k) int16 and meta as JSON."""
    ids = routing(tokens=9)
    meta = {"model": "Qwen", "top_k": 2, "num_experts": 20, "n_moe_layers": 3}
    np.savez_compressed(
        tmp_path / "a.npz", experts=ids.swapaxes(0, 1).astype(np.int16), meta=json.dumps(meta)
    )
    trace, result = imported(tmp_path / "a.npz", tmp_path / "t")
    assert result.format == "routing-lab" and (ids_of(trace) == ids).all()
    assert trace.experts_per_layer == 20 and trace.model.name == "Qwen"


def test_colibri_history(tmp_path: Path) -> None:
    """Sparse counts behind records -1 and -2; other negative layers are passed over."""
    text = "-1 3 6\n-2 1 3815245270\n1 0 7\n-3 9 9\n1 5 2\n3 2 4\n"
    (tmp_path / ".coli_usage").write_text(text)
    trace, result = imported(tmp_path / ".coli_usage", tmp_path / "t", top_k=2)
    assert result.format == "coli-usage" and trace.layers == (1, 3)  # 3: multi-token prediction
    assert trace.counts.tolist() == [[[7, 0, 0, 0, 0, 2], [0, 0, 4, 0, 0, 0]]]
    (tmp_path / "bad").write_text(text + "1 6 1\n")
    with pytest.raises(InputError, match="colibri history"):
        import_trace(tmp_path / "bad", tmp_path / "u", top_k=2)


def test_colibri_trace(tmp_path: Path) -> None:
    """`call row layer id:gate`: a call is a layer of a pass; two passes of 3 and 1 rows."""
    ids = routing(tokens=4)
    lines, call = [], 0
    for rows in ([0, 1, 2], [3]):
        for layer in range(3):
            for row, token in enumerate(rows):
                pairs = " ".join(
                    f"{e}:{0.75 - 0.5 * n:.4f}" for n, e in enumerate(ids[token, layer])
                )
                lines.append(f"{call} {row} {layer + 1} {pairs}")
            call += 1
    (tmp_path / "r.txt").write_text("\n".join(lines) + "\n3 0")
    trace, result = imported(tmp_path / "r.txt", tmp_path / "t")
    assert result.format == "coli-trace" and (ids_of(trace) == ids).all()
    assert trace.layers == (1, 2, 3) and trace.step.tolist() == [0, 0, 0, 1]
    assert (trace.weights(2) == np.float16([0.75, 0.25])).all()
    assert result.skipped == {"line cut off at the end of the file": 1}


def test_lmdeploy_dumps_are_windows_of_one_run(tmp_path: Path) -> None:
    """`counts` [layers, experts] accumulate; `balancedness`, `step` and `rank` stand beside."""
    first, second = np.array([[1, 2, 3], [2, 2, 2]]), np.array([[4, 2, 3], [2, 4, 3]])
    files = [
        saved(
            tmp_path / f"rank0_step{step}_expert_counts.pt",
            {
                "counts": tensor(counts),
                "balancedness": tensor(np.ones(2, np.float32)),
                "step": step,
                "rank": 0,
            },
        )
        for step, counts in ((9, second), (3, first))
    ]
    trace, result = imported(files, tmp_path / "t", top_k=2)
    assert result.format == "lmdeploy"
    assert trace.counts.tolist() == [first.tolist(), (second - first).tolist()]
    trace, result = imported(files[:1], tmp_path / "one", top_k=2)
    assert trace.counts.tolist() == [second.tolist()]


def test_exllama_profile_adds_up_its_phases(tmp_path: Path) -> None:
    """moe_profile_build.py: int64 [prompts, layers, experts] for decode and for prefill."""
    rng = np.random.default_rng(0)
    decode, prefill = rng.integers(0, 9, (2, 5, 3, 8))
    np.savez(tmp_path / "code.npz", counts_decode=decode, counts_prefill=prefill)
    trace, result = imported(tmp_path / "code.npz", tmp_path / "t", top_k=2)
    assert result.format == "exl3-profile" and (trace.counts == decode + prefill).all()
