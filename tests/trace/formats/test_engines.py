"""What serving engines write, in the exact layouts of their versions."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moeprof.cache import replay_cache
from moeprof.errors import InputError
from moeprof.model import MoEModel
from moeprof.trace import merge_traces, open_trace, slice_trace
from moeprof.trace.formats import import_trace
from tests.conftest import small_config
from tests.trace.formats.files import (
    gguf,
    ids_of,
    imported,
    routing,
    safetensors,
    write_csv,
    write_lines,
)

DENSE_FIRST = MoEModel.from_config(small_config(top_k=2))  # layers 1 to 3 of 4, 16 experts


def npy(array: np.ndarray) -> str:
    out = io.BytesIO()
    np.save(out, array, allow_pickle=False)
    return base64.b64encode(out.getvalue()).decode()


def all_layers(ids: np.ndarray) -> np.ndarray:
    return np.concatenate([np.zeros((len(ids), 1, ids.shape[2]), ids.dtype), ids], axis=1)


def response(array: np.ndarray, prompt: int, **more: Any) -> dict[str, Any]:
    usage = {"prompt_tokens": prompt, "completion_tokens": len(array) - prompt + 1}
    choices = [{"index": 0, "routed_experts": npy(array)}]
    return {"model": "tiny", "choices": choices, "usage": usage, **more}


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "int32"])
@pytest.mark.parametrize("layers", ["all", "moe"])
def test_vllm_in_every_dtype_and_both_layouts(tmp_path: Path, dtype: str, layers: str) -> None:
    ids = routing().astype(dtype)
    array = all_layers(ids) if layers == "all" else ids
    file = write_lines(tmp_path / "r.jsonl", [response(array, 5), response(array, 7)])
    trace, _ = imported(file, tmp_path / "t", model=DENSE_FIRST)
    assert trace.layers == (1, 2, 3) and (ids_of(trace) == np.concatenate([ids, ids])).all()
    assert trace.request.tolist() == [0] * 12 + [1] * 12
    assert (trace.phase[:12] == (np.arange(12) >= 5)).all()
    assert trace.step[:12].tolist() == [0] * 5 + list(range(1, 8))
    assert trace.manifest.engine == "vllm"


def test_vllm_0_21_has_two_arrays(tmp_path: Path) -> None:
    ids = routing().astype(np.int16)
    document = {
        "model": "tiny",
        "prompt_routed_experts": npy(ids[:5]),
        "choices": [{"routed_experts": npy(ids[5:])}],
    }
    trace, _ = imported(write_lines(tmp_path / "r.json", [document]), tmp_path / "t")
    assert (ids_of(trace) == ids).all() and (trace.phase == (np.arange(12) >= 5)).all()


def test_vllm_choices_do_not_count_the_prompt_twice(tmp_path: Path) -> None:
    ids = routing()
    document = response(ids, 5)
    document["choices"] = [{"index": n, "routed_experts": npy(ids)} for n in range(2)]
    trace, result = imported(write_lines(tmp_path / "r.json", [document]), tmp_path / "t")
    assert trace.tokens == 12 + 7
    assert result.skipped == {"prompt token that another choice of the same request repeats": 5}
    assert trace.position[12:].tolist() == list(range(5, 12))


def test_vllm_rows_that_start_late_and_dynamo_wrappers(tmp_path: Path) -> None:
    ids = routing().astype(np.uint8)
    late = response(ids[3:], 5)
    late["usage"]["completion_tokens"] = 8
    trace, _ = imported(write_lines(tmp_path / "r.json", [late]), tmp_path / "t", experts=16)
    assert trace.position.tolist() == list(range(3, 12)) and (trace.phase[:2] == 0).all()
    for encode in (base64.b64encode, base64.b85encode):
        wrapped = response(ids, 5)
        data = encode(ids.tobytes()).decode()
        wrapped["choices"][0]["routed_experts"] = {
            "data": data, "shape": list(ids.shape), "dtype": "uint8", "start": 0,
        }  # fmt: skip
        file = write_lines(tmp_path / "w.json", [wrapped])
        trace, _ = imported(file, tmp_path / encode.__name__)
        assert (ids_of(trace) == ids).all()


def test_top_1_of_a_dense_layer_is_no_expert(tmp_path: Path) -> None:
    model = MoEModel.from_config(small_config(top_k=1))
    array = all_layers(routing()[:, :, :1])
    trace, _ = imported(
        write_lines(tmp_path / "r.json", [response(array, 5)]), tmp_path / "t", model=model
    )
    assert trace.layers == (1, 2, 3) and trace.unrecorded == 0


def test_sglang_needs_the_model_and_reads_int32(tmp_path: Path) -> None:
    ids = all_layers(routing()).astype("<i4")
    text = base64.b64encode(ids.tobytes()).decode()
    meta = {"routed_experts": text, "prompt_tokens": 5, "completion_tokens": 8}
    file = write_lines(tmp_path / "r.json", [{"text": "x", "meta_info": meta}])
    with pytest.raises(InputError, match="give --model"):
        import_trace(file, tmp_path / "t")
    trace, result = imported(file, tmp_path / "t", model=DENSE_FIRST)
    assert result.format == "sglang" and (ids_of(trace) == routing()).all()
    assert (trace.phase == (np.arange(12) >= 5)).all()
    with pytest.raises(InputError, match="no whole rows"):
        import_trace(file, tmp_path / "u", model="minimax-m3")


@pytest.mark.parametrize("dtype", ["int8", "int16", "int32"])
def test_nemo_envelopes(tmp_path: Path, dtype: str) -> None:
    ids = routing().astype(dtype)
    envelope = f"nrlre1:{dtype}:12x3x2:{base64.b64encode(ids.tobytes()).decode()}"
    log = [{"message_log": [{"role": "assistant", "routed_experts": envelope}]}]
    trace, result = imported(write_lines(tmp_path / "l.jsonl", log), tmp_path / "t")
    assert result.format == "nemo-rl" and (ids_of(trace) == ids).all()
    assert (trace.phase == -1).all()


def saved(path: Path, content: Any) -> Path:
    torch = pytest.importorskip("torch")
    torch.save(content, path)
    return path


def tensor(array: np.ndarray) -> Any:
    return pytest.importorskip("torch").from_numpy(array)


def test_sglang_stat_drops_empty_steps(tmp_path: Path) -> None:
    counts = np.zeros((5, 4, 16), np.int32)
    counts[[0, 3], 1:] = np.random.default_rng(0).integers(1, 9, (2, 3, 16))
    content = {"rank": 0, "logical_count": tensor(counts), "average": None}
    file = saved(tmp_path / "r.pt", content)
    trace, result = imported(file, tmp_path / "t", top_k=2)
    assert result.counts_only and result.skipped == {"empty step of the circular buffer": 3}
    assert trace.layers == (1, 2, 3) and (trace.counts == counts[[0, 3], 1:]).all()
    with pytest.raises(InputError, match="give --top-k"):
        import_trace(file, tmp_path / "u")


def recorder(per_token: bool) -> tuple[dict[str, Any], np.ndarray, np.ndarray]:
    """A file of 18 physical experts; the last two are replicas of 0 and 1."""
    logical = routing()
    to_logical = np.tile(np.r_[np.arange(16), 0, 1], (4, 1))
    physical = np.where((logical == 0) & (np.arange(12) % 2 == 1)[:, None, None], 16, logical)
    topk = np.full((4, 12, 8), -1, np.int32)
    topk[1:, :, :2] = physical.swapaxes(0, 1)
    counts = np.zeros((4, 18), np.int32)
    for layer in range(1, 4):
        counts[layer] = np.bincount(topk[layer, :, :2].reshape(-1), minlength=18)
    record: dict[str, Any] = {"rank": 0, "global_physical_count": tensor(counts)}
    if per_token:
        record |= {
            "topk_ids_of_layer": tensor(topk), "input_ids": list(range(12)),
            "positions": list(range(12)), "forward_mode": 1, "extend_seq_lens": [12],
        }  # fmt: skip
    content = {"records": [record], "last_physical_to_logical_map": tensor(to_logical)}
    return content, logical, counts


def test_sglang_per_token_maps_physical_to_logical(tmp_path: Path) -> None:
    content, logical, _ = recorder(per_token=True)
    trace, _ = imported(saved(tmp_path / "r.pt", content), tmp_path / "t", token_ids=True)
    assert trace.layers == (1, 2, 3) and (ids_of(trace) == logical).all()
    assert trace.token_id.tolist() == list(range(12)) and (trace.phase == 0).all()


def test_sglang_per_pass_adds_replicas_up(tmp_path: Path) -> None:
    content, logical, _ = recorder(per_token=False)
    trace, result = imported(saved(tmp_path / "r.pt", content), tmp_path / "t", top_k=2)
    wanted = [np.bincount(logical[:, i].reshape(-1), minlength=16) for i in range(3)]
    assert result.tokens == 12 and (trace.counts[0] == wanted).all()


def test_slime_samples(tmp_path: Path) -> None:
    ids = routing().astype(np.int32)
    sample = {
        "tokens": list(range(13)),
        "response_length": 8,
        "rollout_routed_experts": tensor(ids),
    }
    content = {"rollout_id": 1, "samples": [sample, {"tokens": [1], "response_length": 0}]}
    trace, result = imported(saved(tmp_path / "r.pt", content), tmp_path / "t")
    assert result.format == "slime" and (ids_of(trace) == ids).all()
    assert (trace.phase == (np.arange(12) >= 5)).all()
    assert result.skipped == {"sample without rollout_routed_experts": 1}


class Evil:
    """Makes a file where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return (Path.touch, (self.mark,))


def test_a_pt_file_with_code_in_it_is_refused(tmp_path: Path) -> None:
    file = saved(tmp_path / "r.pt", {"logical_count": Evil(tmp_path / "unpickled")})
    with pytest.raises(InputError, match="cannot be loaded safely"):
        import_trace(file, tmp_path / "t")
    assert not (tmp_path / "unpickled").exists()


def test_llamacpp_tables(tmp_path: Path) -> None:
    ids = routing()
    phases = ["prefill"] * 5 + ["decode"] * 7
    ranks = [
        [phases[t], t, layer + 1, rank, ids[t, layer, rank]]
        for t in range(12)
        for layer in range(3)
        for rank in range(2)
    ]
    file = write_csv(tmp_path / "ranks.csv", "phase,token,layer,rank,expert", ranks)
    trace, _ = imported(file, tmp_path / "a")
    assert trace.layers == (1, 2, 3) and (ids_of(trace) == ids).all()
    assert (trace.phase == (np.arange(12) >= 5)).all() and trace.manifest.rank_ordered

    lines = [[t - 5, n + 1, *ids[t, n]] for t in range(12) for n in range(3)]
    rows = write_csv(tmp_path / "rows.csv", ",".join(map(str, lines[0])), lines[1:])
    trace, result = imported(rows, tmp_path / "b")
    assert result.format == "llamacpp-rows" and (ids_of(trace) == ids).all()
    assert (trace.phase == (np.arange(12) >= 5)).all() and (trace.position[:5] == -1).all()
    assert not any("stride bug" in note for note in result.notes)

    pairs = [[layer + 1, e] for t in range(12) for layer in range(3) for e in ids[t, layer]]
    file = write_csv(tmp_path / "pairs.csv", "layer,expert", pairs)
    trace, result = imported(file, tmp_path / "c", top_k=2)
    assert result.counts_only and result.tokens == 12
    assert (trace.counts[0].sum(axis=1) == 24).all()


def test_the_stride_bug_is_seen(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    # what reading ffn_moe_topk [12, 2] of a [12, 16] ranking without its strides gives
    ranked = np.argsort(rng.random((3, 12, 16)), axis=2).reshape(3, -1)[:, :24].reshape(3, 12, 2)
    lines = [[-1 - t, n + 1, *ranked[n, t]] for n in range(3) for t in range(12)]
    file = write_csv(tmp_path / "rows.csv", ",".join(map(str, lines[0])), lines[1:])
    result = import_trace(file, tmp_path / "t")
    assert any("stride bug" in note for note in result.notes)


_ROUTE_COLUMNS = "turn,phase,step,layer,slot,expert,weight,residency,expert_bytes,dropped"


def _route_rows(ids: np.ndarray, read: list[int]) -> list[list[object]]:
    """A prompt of 4 tokens, of which the last layer routes the last alone, then tokens one by one.

    Rows as CsvRouteTraceSink of BigMoeOnEdge writes them; every second expert is a hit.
    """
    order = [(0, layer, t) for layer in range(3) for t in (range(4) if layer < 2 else [3])]
    order += [(1, layer, t) for t in (4, 5) for layer in range(3)]
    return [
        [0, phase, t, layer, slot, ids[t, layer, slot], 0.5, slot, (1 - slot) * read[layer], 0]
        for phase, layer, t in order
        for slot in range(2)
    ]


def test_route_trace_counts_the_tokens_of_a_prompt_as_steps(tmp_path: Path) -> None:
    ids = routing(6)
    header = f"# route_trace v1\n# model=x\n{_ROUTE_COLUMNS}"
    file = write_csv(tmp_path / "r.csv", header, _route_rows(ids, [9, 9, 9]))
    trace, result = imported(file, tmp_path / "t")
    assert result.format == "route-trace"
    assert all((trace.experts(layer) == ids[:, layer]).all() for layer in (0, 1))
    assert trace.recorded(2).tolist() == [False, False, False, True, True, True]
    assert (trace.experts(2) == ids[3:, 2]).all()
    assert trace.step.tolist() == [0, 0, 0, 0, 1, 2]
    assert trace.position.tolist() == [0, 1, 2, 3, 4, 5]
    assert trace.phase.tolist() == [0, 0, 0, 0, 1, 1]
    assert (trace.weights(0) == 0.5).all() and trace.manifest.rank_ordered


def test_route_trace_states_bytes_of_experts(tmp_path: Path) -> None:
    comments = "# model=/m/tiny-Q4.gguf arch=x n_layer=3 n_expert=16 n_expert_used=2\n"
    comments += "".join(f"# layer={n} expert_bytes={100 + n} dense_bytes=7\n" for n in range(3))
    rows = _route_rows(routing(6), [50, 51, 52])  # what was read: the comments say what they take
    file = write_csv(tmp_path / "r.csv", f"# route_trace v1\n{comments}{_ROUTE_COLUMNS}", rows)
    trace, result = imported(file, tmp_path / "t")
    assert trace.manifest.expert_bytes == {0: 100, 1: 101, 2: 102}
    assert trace.experts_per_layer == 16 and trace.model.name == "tiny-Q4"
    assert not any("experts is not in the file" in note for note in result.notes)
    rows_of = [
        replay_cache(trace, slots=2, expert_bytes=b) for b in (None, {0: 100, 1: 101, 2: 102})
    ]
    assert rows_of[0].bytes_per_expert == rows_of[1].bytes_per_expert == 101
    assert rows_of[0].rows[0].bytes_per_token == rows_of[1].rows[0].bytes_per_token
    assert rows_of[0].precision == "stated"
    slice_trace(tmp_path / "t", tmp_path / "s", layers=[1, 2])
    assert open_trace(tmp_path / "s").manifest.expert_bytes == {1: 101, 2: 102}
    merge_traces([tmp_path / "t", tmp_path / "t"], tmp_path / "m")
    assert open_trace(tmp_path / "m").manifest.expert_bytes == {0: 100, 1: 101, 2: 102}


@pytest.mark.parametrize(
    ("read", "stated"),
    [([50, 51, 52], {0: 50, 1: 51, 2: 52}), ([50, 0, 52], {})],
    ids=["column", "a layer that never misses"],
)
def test_bytes_of_experts_from_the_column(
    tmp_path: Path, read: list[int], stated: dict[int, int]
) -> None:
    header = f"# route_trace v1\n# model=x\n{_ROUTE_COLUMNS}"
    file = write_csv(tmp_path / "r.csv", header, _route_rows(routing(6), read))
    assert imported(file, tmp_path / "t")[0].manifest.expert_bytes == stated


def test_reads_of_several_sizes_are_no_size_of_an_expert(tmp_path: Path) -> None:
    rows = _route_rows(routing(6), [50, 51, 52])
    rows[0][8] = 49
    file = write_csv(tmp_path / "r.csv", f"# route_trace v1\n{_ROUTE_COLUMNS}", rows)
    assert imported(file, tmp_path / "t")[0].manifest.expert_bytes == {}


def test_imatrix_counts(tmp_path: Path) -> None:
    counts = np.random.default_rng(0).integers(1, 99, (3, 16)).astype(np.float32)
    tensors = {
        f"blk.{n + 1}.ffn_{part}_exps.weight.counts": counts[n][:, None]
        for n in range(3)
        for part in ("gate", "up", "down")
    }
    tensors |= {"blk.1.attn_q.weight.counts": np.ones((1, 1), np.float32)}
    (tmp_path / "i.gguf").write_bytes(gguf(tensors))
    trace, result = imported(tmp_path / "i.gguf", tmp_path / "t", top_k=2)
    assert result.format == "imatrix" and trace.layers == (1, 2, 3)
    assert (trace.counts[0] == counts).all()


def test_trtllm_statistics_add_ranks_up(tmp_path: Path) -> None:
    folder = tmp_path / "stats"
    folder.mkdir()
    counts = np.random.default_rng(0).integers(0, 9, (2, 2, 3, 16))
    for rank in range(2):
        vectors = {f"{100 + i}_{n + 3}": counts[rank, i, n] for i in range(2) for n in range(3)}
        (folder / f"rank{rank}.safetensors").write_bytes(safetensors(vectors))
    (folder / "meta_info.json").write_text('{"num_experts": 16, "num_experts_per_token": 2}')
    for path in (
        folder,
        folder / "meta_info.json",
        [folder / "rank0.safetensors", folder / "rank1.safetensors"],
    ):
        trace, result = imported(path, tmp_path / "t", force=True)
        assert (result.format, result.top_k, trace.layers) == ("trtllm", 2, (3, 4, 5))
        assert (trace.counts == counts.sum(axis=0)).all()


def test_load_matrices(tmp_path: Path) -> None:
    load = np.random.default_rng(0).integers(1, 9, (3, 16))
    np.save(tmp_path / "l.npy", load)
    (tmp_path / "l.json").write_text(json.dumps({"logical_count": load.tolist()}))
    for name in ("l.npy", "l.json"):
        trace, _ = imported(tmp_path / name, tmp_path / name.replace(".", "_"), model=DENSE_FIRST)
        assert trace.layers == (1, 2, 3) and (trace.counts[0] == load).all()
    np.save(tmp_path / "bad.npy", -load)
    with pytest.raises(InputError, match="negative"):
        import_trace(tmp_path / "bad.npy", tmp_path / "u", top_k=1)
