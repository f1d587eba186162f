"""The documented plain layouts: what is written is read, and what is not said stays unknown."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moeprof.errors import InputError
from moeprof.model import MoEModel
from moeprof.trace.formats import import_trace
from moeprof.trace.formats import table as tables
from moeprof.trace.formats.assemble import LayerRows, assemble
from moeprof.trace.formats.block import Findings
from tests.trace.formats.files import ids_of, imported, routing, write_csv, write_lines


def rows_of(ids: np.ndarray, layers: tuple[int, ...] = (1, 2, 5)) -> list[list[int]]:
    return [[t, layer, *ids[t, i]] for t in range(len(ids)) for i, layer in enumerate(layers)]


def test_csv_without_keys_is_told_apart_by_its_layers(tmp_path: Path) -> None:
    ids = routing()
    file = write_csv(tmp_path / "a.csv", "layer,e0,e1", [row[1:] for row in rows_of(ids)])
    trace, result = imported(file, tmp_path / "t")
    assert trace.layers == (1, 2, 5) and (ids_of(trace) == ids).all()
    assert (trace.position == -1).all() and (trace.request == -1).all()
    assert trace.step.tolist() == list(range(12))
    assert (trace.phase == -1).all()
    assert any("--model or --experts" in note for note in result.notes)


def test_csv_that_goes_layer_by_layer_within_a_step(tmp_path: Path) -> None:
    ids = routing()
    rows = [
        [t // 4, t % 4, layer, *ids[t, i]]
        for s in range(3)
        for i, layer in enumerate((1, 2, 5))
        for t in range(4 * s, 4 * s + 4)
    ]
    file = write_csv(tmp_path / "a.csv", "step,position,layer,e0,e1", rows)
    trace, _ = imported(file, tmp_path / "t")
    assert (ids_of(trace) == ids).all() and trace.step.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    without = write_csv(tmp_path / "b.csv", "step,layer,e0,e1", [[r[0], *r[2:]] for r in rows])
    again, _ = imported(without, tmp_path / "u")
    assert (ids_of(again) == ids).all()


def test_missing_layers_are_null_and_a_cut_token_is_left_out(tmp_path: Path) -> None:
    ids = routing()
    rows = rows_of(ids)
    del rows[4]  # layer 2 of token 1
    file = write_csv(tmp_path / "a.csv", "position,layer,e0,e1", rows[:-1])
    trace, result = imported(file, tmp_path / "t")
    assert result.skipped == {"token cut off at the end of the file": 1}
    assert trace.tokens == 11 and trace.unrecorded == 1 and not trace.recorded(2)[1]


def test_a_line_cut_off_is_left_out(tmp_path: Path) -> None:
    file = write_csv(tmp_path / "a.csv", "position,layer,e0,e1", rows_of(routing()))
    file.write_text(file.read_text()[:-6])
    _, result = imported(file, tmp_path / "t")
    assert result.skipped == {
        "line cut off at the end of the file": 1,
        "token cut off at the end of the file": 1,
    }


def test_pieces_and_gzip_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = routing(400)
    file = write_csv(tmp_path / "a.csv", "position,layer,e0,e1", rows_of(ids))
    packed = tmp_path / "a.csv.gz"
    packed.write_bytes(gzip.compress(file.read_bytes()))
    small = tables.line_pieces
    monkeypatch.setattr(tables, "line_pieces", lambda path, size=700: small(path, 700))
    trace, _ = imported([packed, file], tmp_path / "t")
    assert (ids_of(trace) == np.concatenate([ids, ids])).all()
    assert (np.diff(trace.step) == 1).all()


@given(st.data())
def test_any_split_into_pieces_gives_the_same_tokens(data: st.DataObject) -> None:
    ids = routing(20)
    by_layer = data.draw(st.booleans())
    layer, token = np.tile([1, 2, 5], 20), np.repeat(np.arange(20), 3)
    order = np.lexsort((token, layer, token // 5)) if by_layer else np.arange(60)
    flat = ids.reshape(60, 2)[order]
    step = token[order] // 5 if by_layer else None
    rows = LayerRows(layer[order].astype(np.int32), flat, step, None, token[order])
    cuts = sorted(data.draw(st.lists(st.integers(0, 60), max_size=6)))
    pieces = (rows.slice(a, b) for a, b in zip([0, *cuts], [*cuts, 60], strict=True))
    blocks = list(assemble((p for p in pieces if len(p)), Findings()))
    assert (np.concatenate([b.experts for b in blocks]) == ids).all()
    assert np.concatenate([b.position for b in blocks]).tolist() == list(range(20))


def test_model_gives_native_layers_and_experts(tmp_path: Path, model: MoEModel) -> None:
    ids = np.argsort(np.random.default_rng(0).random((5, 3, 16)), axis=2)[:, :, :3]
    rows = [[layer, *ids[t, layer]] for t in range(5) for layer in range(3)]
    file = write_csv(tmp_path / "a.csv", "layer,e0,e1,e2", rows)
    trace, result = imported(file, tmp_path / "t", model=model)
    assert trace.layers == model.moe_layers == (1, 2, 3) and trace.experts_per_layer == 16
    assert any("counted from 0" in note for note in result.notes)


def test_jsonl_and_npz_say_what_they_know(tmp_path: Path) -> None:
    ids = routing()
    meta = {"format": "moeprof.jsonl", "num_experts": 20, "layers": [1, 2, 5], "rank_ordered": True}
    meta["requests"] = [{"index": 0, "label": "code", "prompt_tokens": 4}]  # type: ignore[assignment]
    objects = [
        {"step": t, "request": 0, "position": t, "phase": "decode", "experts": ids[t].tolist()}
        for t in range(12)
    ]
    objects[3]["experts"] = [ids[3, 0].tolist(), [-1, -1], ids[3, 2].tolist()]
    trace, _ = imported(write_lines(tmp_path / "a.jsonl", [meta, *objects]), tmp_path / "t")
    assert trace.experts_per_layer == 20 and trace.manifest.rank_ordered is True
    assert trace.labels == ("code",) and trace.unrecorded == 1 and (trace.phase == 1).all()

    arrays = {"experts": ids, "layers": np.array([1, 2, 5]), "num_experts": np.array(20)}
    np.savez(tmp_path / "a.npz", **arrays, labels=np.array(["code"]), request=np.zeros(12, int))
    trace, _ = imported(tmp_path / "a.npz", tmp_path / "u")
    assert (ids_of(trace) == ids).all() and trace.labels == ("code",)


def test_dense_layers_are_not_expert_0(tmp_path: Path) -> None:
    ids = np.concatenate([np.zeros((12, 1, 2), int), routing()], axis=1)
    np.savez(tmp_path / "a.npz", experts=ids)
    trace, result = imported(tmp_path / "a.npz", tmp_path / "t")
    assert trace.layers == (1, 2, 3) and sum(result.skipped.values()) == 12


@pytest.mark.parametrize("before", [0, 5])
@pytest.mark.parametrize("alike", [255, 256, 700])
def test_warm_up_is_a_run_of_equal_tokens(tmp_path: Path, before: int, alike: int) -> None:
    ids = routing(before + 50)
    run = np.repeat(routing(1, seed=9), alike, axis=0)
    whole = np.concatenate([ids[:before], run, ids[before:]])
    np.savez(tmp_path / "a.npz", experts=whole)
    trace, result = imported(tmp_path / "a.npz", tmp_path / "t", experts=16)
    left = whole if alike < 256 else ids
    assert (ids_of(trace) == left).all()
    assert result.skipped == ({} if alike < 256 else {"warm-up": alike})


def test_nothing_but_warm_up_is_said(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", experts=np.repeat(routing(1), 300, axis=0))
    with pytest.raises(InputError, match=r"300 x warm-up.*--keep-warmup"):
        import_trace(tmp_path / "a.npz", tmp_path / "t")
    assert not (tmp_path / "t").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "layer,e0,e1\n1,2,x\n", "cannot be read as csv"),
        ("a.csv", "layer,e0,e1\n1,2,\n1,2,3\n", "empty field"),
        ("a.csv", "layer,e0,e1\n1,2\n1,2,3\n", "cannot be read as csv"),
        ("a.csv", "layer,e0\n1,70000\n", "too large"),
        ("a.csv", "layer,e0\n-1,7\n", "no index of a layer"),
        ("a.csv", "step,layer,e0\n2,1,7\n1,1,7\n", "never decrease"),
        ("a.csv", "layer,e0,phase\n1,7,warm\n", "phase 'warm'"),
        ("a.csv", "layer,e0\n", "no token"),
        ("a.jsonl", '{"experts": [[1, 2], [3]]}\n', "lists of 1 and of 2"),
        ("a.jsonl", '{"experts": [[1, 2]]}\n{"experts": [[]]}\n', "lists of 0"),
        ("a.jsonl", '{"experts": [[1, 2]]}\nnonsense\n', "cannot be read as jsonl"),
        ("a.txt", "hello\n", "not a format that is known"),
        ("a.bin", "", "not a format that is known"),
    ],
)
def test_malformed_files_end_in_one_line(
    tmp_path: Path, name: str, content: str, message: str
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=message) as raised:
        import_trace(tmp_path / name, tmp_path / "t")
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "t").exists()


def test_several_formats_and_wrong_flags_are_refused(tmp_path: Path) -> None:
    csv = write_csv(tmp_path / "a.csv", "layer,e0,e1", [[0, 1, 2]])
    lines = write_lines(tmp_path / "a.jsonl", [{"experts": [[1, 2]]}])
    for files, options, message in (
        ([csv, lines], {}, "import them one by one"),
        ([csv], {"format": "nonsense"}, "is not one of"),
        ([csv], {"experts": 2}, "do not go with 2 experts"),
        ([csv], {"experts": 0}, "not a number above 0"),
        ([csv], {"top_k": 3}, "have 2 experts a layer, not 3"),
        ([], {}, "at least one file"),
        ([tmp_path / "none"], {}, "no such file"),
    ):
        with pytest.raises(InputError, match=message):
            import_trace(files, tmp_path / "t", **options)  # type: ignore[arg-type]


def test_pickled_arrays_are_never_loaded(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", experts=np.zeros((1, 1, 1), object))
    with pytest.raises(InputError):
        import_trace(tmp_path / "a.npz", tmp_path / "t", format="npz")
