"""Recordings of counts: they equal what a full recording counts to, and hold nothing else."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moeprof.analysis import analyze_load
from moeprof.cli.main import main
from moeprof.errors import InputError, MoeprofError, TraceError
from moeprof.model import MoEModel
from moeprof.placement.windows import split_windows
from moeprof.report.text.trace import trace_info_text
from moeprof.trace import (
    Phase,
    Request,
    TokenRows,
    TraceWriter,
    merge_traces,
    migrate_trace,
    open_trace,
    redact_trace,
    slice_trace,
    synthesize_rows,
    validate_trace,
)
from moeprof.trace.held import HeldWindows
from moeprof.trace.streams import StreamWriter
from tests.conftest import small_config
from tests.killing import progress_until_killed
from tests.trace.test_damage import edit_manifest
from tests.trace.test_failing_writes import refuse
from tests.trace.test_limits import MIB, stored
from tests.trace.test_store import part

Key = tuple[int, int, int, int]  # window, phase, layer, expert


def counted(rows: TokenRows, steps: int, layers: tuple[int, ...]) -> Counter[Key]:
    """The counts of `rows`, one assignment after the other."""
    found: Counter[Key] = Counter()
    for t in range(len(rows)):
        phase = -1 if rows.phase is None else int(rows.phase[t])
        for n, layer in enumerate(layers):
            if rows.recorded is None or rows.recorded[t, n]:
                for expert in rows.experts[t, n]:
                    found[int(rows.step[t]) // steps, phase, layer, int(expert)] += 1
    return found


def stored_counts(path: Path) -> Counter[Key]:
    found: Counter[Key] = Counter()
    for row in open_trace(path).count_rows.to_pylist():
        phase = -1 if row["phase"] is None else row["phase"]
        found[row["window"], phase, row["layer"], row["expert"]] += row["tokens"]
    return found


def write(path: Path, model: MoEModel, rows: TokenRows, steps: int, size: int = 70) -> Path:
    """`rows` aggregated, written in parts and flushed at the end alone."""
    with TraceWriter(
        path, model, aggregate_steps=steps, clock_base=0.0, clock=lambda: 0.0
    ) as out:  # fmt: skip
        for start in range(0, len(rows), size):
            out.write(part(rows, start, start + size))
    return path


@given(
    tokens=st.integers(1, 250),
    steps=st.integers(1, 40),
    size=st.integers(1, 120),
    nulls=st.booleans(),
    phases=st.sampled_from(["known", "some", "none"]),
    first=st.sampled_from([0, 10**12]),
)
def test_counts_are_those_of_the_rows(
    tmp_path_factory: pytest.TempPathFactory,
    tokens: int,
    steps: int,
    size: int,
    nulls: bool,
    phases: str,
    first: int,
) -> None:
    model = MoEModel.from_config(small_config())
    rows, _ = synthesize_rows(model, tokens, requests=3)
    rng = np.random.default_rng(tokens)
    if nulls:
        rows = replace(rows, recorded=rng.random(rows.experts.shape[:2]) < 0.6)
    if phases != "known":
        some = np.where(rng.random(tokens) < 0.5, rows.phase, np.int8(-1))
        rows = replace(rows, phase=some if phases == "some" else None)
    rows = replace(rows, step=rows.step + first)
    path = write(tmp_path_factory.mktemp("t") / "t", model, rows, steps, size)
    expected = counted(rows, steps, model.moe_layers)
    assert stored_counts(path) == expected
    trace, info = open_trace(path), validate_trace(path)
    assert info.problems == [] and trace.manifest.tokens == tokens
    assert nulls or (trace.tokens, info.tokens) == (tokens, tokens)
    assert trace.counts.sum() == sum(expected.values())
    assert info.windows == len({window for window, *_ in expected})


def test_what_load_and_placement_say_is_what_they_say_of_the_tokens(
    tmp_path: Path, model: MoEModel
) -> None:
    rows, _ = synthesize_rows(model, 600, requests=6)
    whole = tmp_path / "whole"
    with TraceWriter(whole, model) as out:
        out.write(rows)
    path = write(tmp_path / "t", model, rows, 10)
    full, mine = analyze_load(open_trace(whole)), analyze_load(open_trace(path))
    assert mine.per_layer == full.per_layer and mine.tokens == full.tokens == 600
    assert mine.per_phase == full.per_phase and len(mine.per_phase) == 2
    windows = split_windows(open_trace(path))
    np.testing.assert_array_equal(windows.fit_load + windows.test_load, full.load)
    info = validate_trace(path)
    assert info.prefill_tokens == int((rows.phase == Phase.PREFILL).sum())
    assert info.decode_tokens == int((rows.phase == Phase.DECODE).sum())
    assert "counts only" in trace_info_text(info) and "of 10 steps" in trace_info_text(info)


def test_the_order_of_tokens_is_not_in_the_files(tmp_path: Path, model: MoEModel) -> None:
    """Two orders of one window's tokens, of other requests at other positions: the same bytes."""
    rows, _ = synthesize_rows(model, 400, requests=4)
    rng = np.random.default_rng(1)
    window = rows.step // 25
    order = np.lexsort((rng.random(400), window))
    assert not np.array_equal(order, np.arange(400))
    other = TokenRows(
        step=rows.step,
        request=rng.integers(0, 9, 400).astype(np.int32),
        position=rng.permutation(400).astype(np.int32),
        phase=None if rows.phase is None else rows.phase[order],
        experts=rows.experts[order],
    )
    paths = [
        write(tmp_path / "a" / "t", model, rows, 25, 70),
        write(tmp_path / "b" / "t", model, other, 25, 33),
    ]
    files = [{f.relative_to(p): f.read_bytes() for f in p.rglob("*") if f.is_file()} for p in paths]
    assert files[0] == files[1]
    assert {str(name) for name in files[0]} == {"manifest.json", "segments/000000.arrows"}


def test_nothing_of_a_request_is_kept(tmp_path: Path, model: MoEModel) -> None:
    with TraceWriter(tmp_path / "t", model, aggregate_steps=5, request_names="plain") as out:
        out.write(synthesize_rows(model, 50)[0])
        out.put_request(Request(0, "a label", 1.0, 5, 6, "a name"))
    content = b"".join(f.read_bytes() for f in (tmp_path / "t").rglob("*") if f.is_file())
    assert b"a label" not in content and b"a name" not in content
    trace = open_trace(tmp_path / "t")
    assert (trace.requests, trace.manifest.request_names) == ((), "none")
    assert trace.count_rows.column_names == ["window", "layer", "expert", "tokens", "phase"]


def test_what_needs_order_refuses(tmp_path: Path, model: MoEModel, capsys: Any) -> None:
    path = write(tmp_path / "t", model, synthesize_rows(model, 60)[0], 5)
    trace = open_trace(path)
    for ask in (lambda: trace.experts(1), lambda: trace.step, lambda: next(trace.rows())):
        with pytest.raises(TraceError, match="holds counts only; this needs the order of tokens"):
            ask()
    with pytest.raises(InputError, match="a slice needs tokens"):
        slice_trace(path, tmp_path / "s")
    export = f"export --format csv -o {tmp_path / 'x'}"
    for command in ("cache --slots 4", "cache curve", "analyze locality", export):
        assert main([*command.split(), str(path)]) != 0
        assert "counts only" in capsys.readouterr().err.splitlines()[-1], command


def test_commands_take_it(tmp_path: Path, model: MoEModel, capsys: Any) -> None:
    path = write(tmp_path / "t", model, synthesize_rows(model, 300)[0], 5)
    for command in (["info"], ["validate"], ["analyze", "load"], ["place", "--gpus", "4"]):
        split = 1 if command[0] != "analyze" else 2
        arguments = [*command[:split], str(path), *command[split:], "--json"]
        assert main(arguments) == 0, command
        assert json.loads(capsys.readouterr().out)["result"]
    output = str(tmp_path / "report.html")
    assert main(["report", str(path), "-o", output, "--quiet"]) == 0
    assert "counts" in Path(output).read_text()


def test_merged_windows_go_on(tmp_path: Path, model: MoEModel) -> None:
    rows = [synthesize_rows(model, 120, seed=seed)[0] for seed in (0, 1)]
    paths = [write(tmp_path / str(n), model, r, 10) for n, r in enumerate(rows)]
    result = merge_traces(paths, tmp_path / "all")
    assert (result.tokens, result.problems, result.complete) == (240, [], True)
    both = [stored_counts(path) for path in paths]
    after = max(window for window, *_ in both[0]) + 1
    expected = both[0] + Counter({(w + after, *rest): n for (w, *rest), n in both[1].items()})
    assert stored_counts(tmp_path / "all") == expected
    assert validate_trace(tmp_path / "all").problems == []
    for make, name in ((redact_trace, "r"), (migrate_trace, "m")):
        assert make(paths[0], tmp_path / name).tokens == 120
        assert stored_counts(tmp_path / name) == both[0]
    with pytest.raises(InputError, match="its steps a window is 7, not 10"):
        merge_traces([paths[0], write(tmp_path / "x", model, rows[1], 7)], tmp_path / "no")


def test_memory_is_that_of_one_window(model: MoEModel, tmp_path: Path) -> None:
    out = TraceWriter(tmp_path / "t", model, aggregate_steps=10**9)
    held = out._held
    assert isinstance(held, HeldWindows)
    size = held._counts.nbytes
    for seed in range(20):
        out.write(replace(synthesize_rows(model, 500, seed=seed)[0], step=np.full(500, seed)))
    assert held.rows == 0 and held._counts.nbytes == size == 3 * 3 * 16 * 8
    assert held._counts.sum() == 20 * 500 * 3 * 3
    out.close()
    assert open_trace(tmp_path / "t").tokens == 10_000


@pytest.mark.parametrize("rotate", [False, True])
def test_a_size_limit_counts_what_it_takes_away(
    tmp_path: Path, model: MoEModel, rotate: bool
) -> None:
    seen, sizes = 0, []
    with TraceWriter(
        tmp_path / "t", model, aggregate_steps=1, max_bytes=MIB, rotate=rotate
    ) as out:  # fmt: skip
        for number in range(120):
            rows, _ = synthesize_rows(model, 400, seed=number)
            step = np.repeat(np.arange(80), 5) + 80 * number
            out.write(replace(rows, step=step))
            out.flush()
            seen += 400
            sizes.append(stored(tmp_path / "t"))
        assert out.full != rotate
    trace, info = open_trace(tmp_path / "t"), validate_trace(tmp_path / "t")
    assert max(sizes) < MIB and stored(tmp_path / "t") < MIB and info.problems == []
    lost = info.rotated_tokens if rotate else info.dropped["size limit"]
    assert 0 < trace.tokens == trace.manifest.tokens == seen - lost < seen
    windows = np.unique(trace.count_rows["window"].to_numpy())
    assert (windows[-1] == 80 * 120 - 1) == rotate and (windows[0] == 0) != rotate
    assert (np.diff(windows) == 1).all()


def test_a_failed_write_drops_whole_windows_and_the_next_goes_on(
    tmp_path: Path, model: MoEModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, _ = synthesize_rows(model, 300, requests=1)
    rows = replace(rows, step=np.arange(300))
    out = TraceWriter(tmp_path / "t", model, aggregate_steps=10)
    out.write(part(rows, 0, 95))
    with monkeypatch.context() as patch:
        patch.setattr(StreamWriter, "append", refuse)
        with pytest.raises(MoeprofError, match="No space left"):
            out.flush()
    out.write(part(rows, 95, 300))
    out.close()
    info = validate_trace(tmp_path / "t")
    assert (info.tokens, info.dropped) == (210, {"write failed": 90})
    late = {key: n for key, n in counted(rows, 10, model.moe_layers).items() if key[0] >= 9}
    assert stored_counts(tmp_path / "t") == late and info.problems == []


RECORDER = """
import json, sys, time
import numpy as np
from dataclasses import replace
from moeprof.model import MoEModel
from moeprof.trace import TraceWriter, synthesize_rows
model = MoEModel.from_config(json.loads(sys.argv[2]))
rows, _ = synthesize_rows(model, 50, requests=1)
writer = TraceWriter(sys.argv[1], model, aggregate_steps=4)
for step in range(10**6):
    writer.write(replace(rows, step=np.full(50, step)))
    writer.tick()
    print(step, time.monotonic(), flush=True)
    time.sleep(0.002)
"""


def test_kill_9_leaves_all_whole_windows(tmp_path: Path) -> None:
    path = tmp_path / "run.moetrace"
    due, last = progress_until_killed(RECORDER, str(path), json.dumps(small_config()), seconds=1.5)
    trace = open_trace(path)
    windows = trace.count_rows["window"].to_numpy()
    assert (due + 1) // 4 <= windows.max() + 1 <= (last + 2) // 4
    assert (trace.counts.sum(axis=2) == 4 * 50 * 3).all(), "only whole ones, and each of them"
    assert len(trace.counts) == windows.max() + 1
    problems = validate_trace(path).problems
    assert problems and not any("multiple" in problem for problem in problems)


def test_a_cut_and_a_forged_file_are_said_to_be(tmp_path: Path, model: MoEModel) -> None:
    path = write(tmp_path / "t", model, synthesize_rows(model, 200)[0], 5)
    shutil.copytree(path, tmp_path / "cut")
    segment = tmp_path / "cut" / "segments" / "000000.arrows"
    segment.write_bytes(segment.read_bytes()[:-700])
    assert any("can be read" in problem for problem in validate_trace(tmp_path / "cut").problems)
    edit_manifest(path, layers=[1, 2, 5])
    assert any("name a layer" in problem for problem in validate_trace(path).problems)
    edit_manifest(path, layers=[1, 2, 3], top_k=2, tokens=3)
    problems = " ".join(validate_trace(path).problems)
    assert "3 tokens were counted, the counts are of 300" in problems


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"aggregate_steps": 0}, "aggregate_steps: .*greater than 0"),
        ({"aggregate_steps": 5, "weights": True}, "leave out weights"),
        ({"aggregate_steps": 5, "token_ids": True, "margins": True}, "out token_ids, margins"),
    ],
)
def test_what_cannot_be_aggregated_is_refused(
    tmp_path: Path, model: MoEModel, options: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(TraceError, match=sentence):
        TraceWriter(tmp_path / "t", model, **options)
    assert not (tmp_path / "t").exists()
    with TraceWriter(tmp_path / "t", model) as out, pytest.raises(TraceError, match="takes tokens"):
        out.write_counts(None, 0)
