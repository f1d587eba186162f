"""Whatever stands in a file, an import ends in a sound trace or in one clear line.

The budget is small; MOEPROF_FUZZ_EXAMPLES=800 runs for ten minutes or so.
"""

from __future__ import annotations

import base64
import json
import os
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from moeprof.errors import InputError
from moeprof.trace import validate_trace
from moeprof.trace.formats import format_names, import_trace
from tests.trace.formats.files import gguf, routing, safetensors, write_csv, write_lines
from tests.trace.formats.test_engines import npy, recorder, response, saved, tensor

EXAMPLES = int(os.environ.get("MOEPROF_FUZZ_EXAMPLES", "12"))
REPEATABLE = "MOEPROF_FUZZ_EXAMPLES" not in os.environ  # the long run draws anew each time
# numpy warns that a damaged header may be one of Python 2, and reads it all the same
pytestmark = pytest.mark.filterwarnings("ignore:Reading `.npy` or `.npz` file:UserWarning")
# what a file says is kept, and validate says so
_STATED = ("stands twice", "no drop was counted")


def seeds() -> dict[str, bytes]:
    """A sound file of each format that is one file, as bytes."""
    with tempfile.TemporaryDirectory() as folder:
        write_seeds(Path(folder))
        files = list(Path(folder).iterdir())
        return {file.name.split(".")[0].split("_")[-1]: file.read_bytes() for file in files}


def write_seeds(folder: Path) -> None:
    ids = routing()
    rows = [[t, n, *ids[t, n]] for t in range(12) for n in range(3)]
    route = [
        [0, "decode", t, n, s, ids[t, n, s], 0.5, 90]
        for t in range(12)
        for n in range(3)
        for s in range(2)
    ]
    np.savez(folder / "npz", experts=ids, labels=np.array(["a"]))
    np.savez(folder / "cells", experts=ids[None], n_tokens=np.array([9]))
    np.save(folder / "load.npy", np.ones((3, 4), np.int64))
    lab = {"format": "moe-cache-lab.routing-jsonl", "num_experts": 16}
    selections = [
        {"phase": "prompt", "token_position": t, "layer": 0, "selected_experts": ids[t, 0].tolist()}
        for t in range(9)
    ]
    prompts = {
        "english": {"prompt_len": 5, "prefill": ids[:5].tolist(), "decode": ids[5:].tolist()}
    }
    granite = {"model": "m", "num_layers": 3, "num_experts": 16, "top_k": 2, "prompts": prompts}
    steps = [{"1": ids[t : t + 1, 0].tolist(), "0": None} for t in range(9)]
    logged = [
        {
            "type": "route",
            "token_idx": t % 4,
            "layer": 0,
            "topk_ids": ids[t, 0].tolist(),
            "topk_weights": [0.5, 0.2],
        }
        for t in range(12)
    ]
    mega = [
        {
            "step": t,
            "stage": "x",
            "block": "decoder",
            "layer": 0,
            "topk": 2,
            "top_indices": ids[:3, 0].tolist(),
        }
        for t in range(4)
    ]
    write_csv(folder / "csv", "position,layer,e0,e1", rows)
    write_csv(
        folder / "decode-csv",
        "pos,layer,n,e0,e1,w0,w1",
        [[*r[:2], 2, *r[2:], 0.5, 0.25] for r in rows],
    )
    write_csv(
        folder / "events-csv",
        "scheduler_step,layer,requested_experts",
        [[r[0], r[1], f"{r[2]} {r[3]}"] for r in rows],
    )
    write_csv(folder / "llamacpp-rows", ",".join(map(str, rows[0])), rows[1:])
    write_csv(folder / "llamacpp-pairs", "layer,expert", [r[1:3] for r in rows])
    write_csv(
        folder / "llamacpp-ranks",
        "phase,token,layer,rank,expert",
        [[r[1], r[2], r[3], r[4], r[5]] for r in route],
    )
    write_csv(
        folder / "route-trace",
        "# route_trace v1\n# model=/m/x.gguf arch=x n_layer=3 n_expert=16 n_expert_used=2\n"
        "# layer=1 expert_bytes=90 dense_bytes=5\n"
        "turn,phase,step,layer,slot,expert,weight,expert_bytes",
        route,
    )
    write_csv(
        folder / "layer1_gates-csv",
        "layer_id,token_id,expert_0,expert_1",
        [[0, 0, 0.5, 0], [0, 1, 0, 0.5]],
    )
    write_lines(folder / "jsonl", [{"experts": ids[t].tolist()} for t in range(12)])
    write_lines(
        folder / "tok-layers-jsonl", [{"tok": t, "layers": ids[t].tolist()} for t in range(12)]
    )
    write_lines(folder / "moe-cache-lab", [lab, *selections])
    write_lines(folder / "vllm-route-log", [{"type": "meta", "layers_logged": [0]}, *logged])
    write_lines(folder / "megatron", mega)
    write_lines(folder / "prompts-json", [granite])
    write_lines(folder / "steps-json", [steps])
    write_lines(folder / "vllm", [response(ids.astype(np.uint8), 5)])
    write_lines(folder / "sglang", [{"meta_info": {"routed_experts": npy(ids)[20:60]}}])
    write_lines(folder / "nemo-rl", ["nrlre1:int8:1x1x2:AAE="])
    (folder / "imatrix").write_bytes(
        gguf({"blk.1.ffn_up_exps.weight.counts": np.ones((4, 1), np.float32)})
    )
    (folder / "trtllm").write_bytes(safetensors({"1_0": np.ones(4, np.int64)}))
    sample = {"tokens": list(range(13)), "response_length": 8}
    torch_files = {
        "sglang-stat": {"logical_count": tensor(np.ones((2, 3, 4), np.int32))},
        "sglang-recorder": recorder(per_token=True)[0],
        "sglang-passes": recorder(per_token=False)[0],
        "slime": {"samples": [sample | {"rollout_routed_experts": tensor(ids.astype(np.int32))}]},
    }
    torch_files["lmdeploy"] = {
        "counts": tensor(np.ones((3, 4), np.int64)),
        "balancedness": tensor(np.ones(3, np.float32)),
        "step": 5,
    }
    records = [[n, 4, 2, *ids[t : t + 4, n].ravel()] for t in (0, 4, 8) for n in range(3)]
    (folder / "moe-trace-binary").write_bytes(np.array(records, "<i4").tobytes())
    np.savez(folder / "routing-lab", experts=ids, meta=np.array('{"num_experts": 16}'))
    np.savez(folder / "exl3-profile", counts_decode=np.ones((2, 3, 4), np.int64))
    (folder / "coli-usage").write_text("-1 2 4\n-2 1 5\n0 1 3\n1 0 2\n")
    gates = [
        f"{t} 0 {n} {ids[t, n, 0]}:0.5 {ids[t, n, 1]}:0.25" for t in range(9) for n in range(3)
    ]
    (folder / "coli-trace").write_text("\n".join(gates) + "\n")
    for name, content in torch_files.items():
        saved(folder / name, content)
    table = {f"experts.{n}": pa.array(ids[:, n].tolist(), pa.list_(pa.int32(), 2)) for n in (0, 1)}
    parquet.write_table(pa.table(table), folder / "parquet")


SEEDS = seeds()
SUFFIXES = {"load": ".npy"} | dict.fromkeys(("npz", "cells", "routing-lab", "exl3-profile"), ".npz")


def attempt(content: bytes, format: str | None, name: str = "layer1_x") -> None:
    """Import `content`: a sound trace, or one line and nothing left behind."""
    with tempfile.TemporaryDirectory() as folder:
        file, output = Path(folder, name), Path(folder, "t")
        file.write_bytes(content)
        attempt_path(file, format, output)


def attempt_path(path: Path, format: str | None, output: Path) -> None:
    """The same for what lies at `path`."""
    try:
        import_trace(path, output, format=format, top_k=2)
    except InputError as error:
        assert "\n" not in str(error) and not output.exists()
        return
    problems = validate_trace(output).problems
    assert [p for p in problems if not any(words in p for words in _STATED)] == []


@settings(max_examples=EXAMPLES, derandomize=REPEATABLE, suppress_health_check=list(HealthCheck))
@given(data=st.data())
@pytest.mark.parametrize("name", sorted(SEEDS))
def test_damaged_files(name: str, data: st.DataObject) -> None:
    content = damaged(SEEDS[name], data)
    attempt(content, None, "layer1_x" + SUFFIXES.get(name, ""))


def damaged(sound: bytes, data: st.DataObject) -> bytes:
    """`sound` with up to four bytes flipped, cut, put in or taken out."""
    content = bytearray(sound)
    for _ in range(data.draw(st.integers(0, 4))):
        place = data.draw(st.integers(0, max(0, len(content) - 1)))
        kind = data.draw(st.sampled_from(["flip", "cut", "insert", "remove", "digit"]))
        if kind == "flip" and content:
            content[place] = data.draw(st.integers(0, 255))
        elif kind == "cut":
            del content[place:]
        elif kind == "insert":
            words = [b"\n", b",", b"null", b"-1", b"99999999999", b"[]", b"{}", b'"', b"1e400"]
            content[place:place] = data.draw(st.sampled_from(words) | st.binary(max_size=9))
        elif kind == "remove":
            del content[place : place + data.draw(st.integers(1, 40))]
        elif content:
            content[place] = data.draw(st.sampled_from(b"0123456789"))
    return bytes(content)


def folder_seeds() -> dict[str, dict[str, bytes]]:
    """A sound folder of each format that is one: its files by name."""
    ids = routing().astype(np.int16)

    def array(values: np.ndarray) -> bytes:
        return base64.b64decode(npy(values))

    column = pa.list_(pa.int16(), 2)
    flame = {}
    for n in range(2):
        table = {"indices": pa.array(ids[:, n].tolist(), column)}
        table["scores"] = pa.array([[0.5, 0.25]] * len(ids), pa.list_(pa.float32(), 2))
        sink = pa.BufferOutputStream()
        parquet.write_table(pa.table(table), sink)
        flame[f"layer_{n + 2:02}.parquet"] = sink.getvalue().to_pybytes()
    ranks = {
        f"rank{rank}.safetensors": safetensors(
            {f"{i}_{layer}": np.ones(4, np.int64) for i in range(2) for layer in (1, 2)}
        )
        for rank in range(2)
    }
    meta = {"num_experts": 4, "num_experts_per_token": 2}
    return {
        "mosl": {
            **{f"layer{n:03}.npy": array(ids[:, n]) for n in range(3)},
            "seq_lens.npy": array(np.array([5, 7])),
            "meta.json": b'{"repo": "a/b"}',
            "domains.json": b'["code", "prose"]',
        },
        "trtllm": {**ranks, "meta_info.json": json.dumps(meta).encode()},
        "flame-moe": flame,
    }


FOLDERS = folder_seeds()


@settings(max_examples=EXAMPLES, derandomize=REPEATABLE, suppress_health_check=list(HealthCheck))
@given(data=st.data())
@pytest.mark.parametrize("name", sorted(FOLDERS))
def test_damaged_folders(name: str, data: st.DataObject) -> None:
    """Files damaged, missing, exchanged, under another's name, or a folder in a file's place."""
    files: dict[str, bytes | None] = dict(FOLDERS[name])
    for _ in range(data.draw(st.integers(0, 3))):
        file, other = (data.draw(st.sampled_from(sorted(FOLDERS[name]))) for _ in range(2))
        kind = data.draw(st.sampled_from(["damage", "remove", "swap", "copy", "folder"]))
        content = files.get(file)
        if kind == "damage" and content is not None:
            files[file] = damaged(content, data)
        elif kind == "remove":
            files.pop(file, None)
        elif kind == "swap":
            files[file], files[other] = files.get(other), files.get(file)
        elif kind == "copy":
            names = ["layer9.npy", "layer_9.parquet", "rank9.safetensors", "layer999999999999.npy"]
            files[data.draw(st.sampled_from(names))] = content
        else:
            files[file] = None  # a folder of that name
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root, "recording")
        folder.mkdir()
        for file, content in files.items():
            if content is None:
                (folder / file).mkdir()
            else:
                (folder / file).write_bytes(content)
        attempt_path(folder, data.draw(st.sampled_from([None, name])), Path(root, "t"))


@pytest.mark.parametrize("name", sorted(FOLDERS))
def test_sound_folders_are_known(name: str, tmp_path: Path) -> None:
    for file, content in FOLDERS[name].items():
        (tmp_path / file).write_bytes(content)
    assert import_trace(tmp_path, tmp_path / "t", top_k=2).format == name


@settings(max_examples=EXAMPLES, derandomize=REPEATABLE, suppress_health_check=list(HealthCheck))
@given(content=st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
@example(content=b"")
@example(content=b"\x1f\x8b\x08\x00")
@example(content=b"PK\x03\x04")
@pytest.mark.parametrize("name", format_names())
def test_any_bytes_in_any_format(name: str, content: bytes) -> None:
    attempt(content, name)


KEYS = ["experts", "layers", "step", "choices", "0", "records", "prompts", "logical_count"]
LEAVES = st.none() | st.booleans() | st.integers(-3, 2**70) | st.floats() | st.text(max_size=4)
JSON: st.SearchStrategy[object] = st.deferred(
    lambda: (
        LEAVES
        | st.lists(JSON, max_size=2)
        | st.dictionaries(st.sampled_from(KEYS), JSON, max_size=2)
    )
)


@settings(max_examples=EXAMPLES, derandomize=REPEATABLE, suppress_health_check=list(HealthCheck))
@given(value=JSON)
@pytest.mark.parametrize("name", format_names())
def test_any_json_in_any_format(name: str, value: object) -> None:
    attempt(json.dumps(value).encode(), name)


@settings(max_examples=EXAMPLES, derandomize=REPEATABLE)
@given(data=st.data())
def test_any_arrays_in_an_archive(data: st.DataObject) -> None:
    names = [
        "experts",
        "layers",
        "step",
        "request",
        "phase",
        "weights",
        "n_tokens",
        "labels",
        "num_experts",
    ]
    shapes = st.lists(st.integers(0, 3), max_size=4).map(tuple)
    with tempfile.NamedTemporaryFile(suffix=".npz") as file:
        kinds = st.sampled_from(["i1", "u1", "i8", "f4", "U3"])
        arrays = {
            name: np.full(data.draw(shapes), data.draw(st.integers(-2, 99))).astype(
                data.draw(kinds)
            )
            for name in data.draw(st.lists(st.sampled_from(names), unique=True))
        }
        np.savez(file, **arrays)
        content = Path(file.name).read_bytes()
    for format in ("npz", "cells-npz", None):
        attempt(content, format, "a.npz")


def test_pieces_of_archives(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("experts.npy", b"\x93NUMPY\x01\x00\x76\x00{'descr'")
    attempt((tmp_path / "a.npz").read_bytes(), None, "a.npz")
    attempt((tmp_path / "a.npz").read_bytes(), "npz", "a.npz")
