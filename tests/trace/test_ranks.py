"""What ranks recorded becomes one trace: a split one is put together as it was."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moeprof.cli.main import main
from moeprof.errors import InputError, TraceError
from moeprof.model import MoEModel
from moeprof.report.text.trace import trace_info_text
from moeprof.trace import (
    Request,
    TelemetrySample,
    TokenRows,
    Trace,
    TraceWriter,
    joining,
    merge_traces,
    open_trace,
    validate_trace,
)
from moeprof.trace.columns import concat_rows
from tests.conftest import small_config
from tests.killing import progress_until_killed
from tests.trace.test_aggregate import counted, stored_counts
from tests.trace.test_damage import edit_manifest
from tests.trace.test_merge import digest

LAYERS = (1, 2, 3)
Select = Callable[[TokenRows], np.ndarray]


def served(steps: int, requests: int, seed: int) -> TokenRows:
    """Steps of a server: requests come and go, each step has a token or a prompt of some."""
    rng = np.random.default_rng(seed)
    step, request, position, phase = [], [], [], []
    done = np.zeros(requests, int)
    for number in range(steps):
        for who in np.flatnonzero(rng.random(requests) < 0.6):
            new = 1 if done[who] else int(rng.integers(1, 6))
            step += [number] * new
            request += [who] * new
            position += range(done[who], done[who] + new)
            phase += [int(done[who] > 0)] * new
            done[who] += new
    tokens = len(step)
    experts = rng.permuted(np.tile(np.arange(16), (tokens * 3, 1)), axis=1)[:, :3]
    return TokenRows(
        np.array(step, np.int64),
        np.array(request, np.int32),
        np.array(position, np.int32),
        np.array(phase, np.int8),
        experts.reshape(tokens, 3, 3).astype(np.uint8),
    )


def numbered(rows: TokenRows, names: bool, offset: int) -> tuple[TokenRows, list[Request]]:
    """`rows` as a rank numbers them: from `offset` on, in order of arrival or else by name."""
    distinct, first, place = np.unique(rows.request, return_index=True, return_inverse=True)
    order = np.argsort(np.argsort(first))
    requests = [
        Request(
            int(order[i]) + offset,
            label="x",
            prompt_tokens=5,
            name=f"id-{distinct[i]}" if names else None,
        )
        for i in range(len(distinct))
    ]
    return replace(rows, request=(order[place] + offset).astype(np.int32)), requests


def with_layers(rows: TokenRows, layers: Sequence[int]) -> TokenRows:
    places = [LAYERS.index(layer) for layer in layers]
    recorded = None if rows.recorded is None else rows.recorded[:, places]
    return replace(rows, experts=rows.experts[:, places], recorded=recorded)


def write(
    path: Path,
    model: MoEModel,
    rows: TokenRows,
    layers: Sequence[int] = LAYERS,
    requests: Sequence[Request] = (),
    size: int = 50,
    **options: Any,
) -> Path:
    """One rank's trace; flushed in parts, so that batches end in mid-step."""
    with TraceWriter(path, model, layers=layers, clock_base=0.0, **options) as out:
        for start in range(0, len(rows), size):
            out.write(rows.select(slice(start, start + size)))
            out.flush()
        for request in requests:
            out.put_request(request)
    return path


def split(
    folder: Path,
    model: MoEModel,
    rows: TokenRows,
    sizes: tuple[int, int, int] = (2, 2, 2),
    *,
    names: bool = False,
    without: Sequence[str] = (),
    **options: Any,
) -> Path:
    """The trace of every rank of `sizes` (dp, pp, tp), each with request numbers of its own."""
    kind = "plain" if names else "none"
    for dp, of_dp in enumerate(shared(rows, sizes[0])):
        for pp, layers in enumerate(np.array_split(LAYERS, sizes[1])):
            # Those of one stage see the whole batch, and number alike unless names tell.
            mine, requests = numbered(of_dp, names, 7 * pp)
            for tp, index in enumerate(dealt(mine, sizes[2])):
                name = f"dp{dp:02}-pp{pp:02}-tp{tp:02}"
                if name not in without:
                    part, known = mine.select(index), requests
                    if names:
                        part, known = numbered(of_dp.select(index), True, 3 * tp + pp)
                    part = with_layers(part, layers.tolist())
                    path = folder / "ranks" / name
                    write(path, model, part, layers.tolist(), known, request_names=kind, **options)
    return folder


def shared(rows: TokenRows, dps: int) -> list[TokenRows]:
    """The rows of each data-parallel rank."""
    return [rows.select(np.flatnonzero(rows.request % dps == dp)) for dp in range(dps)]


def dealt(rows: TokenRows, tps: int) -> list[np.ndarray]:
    """Of each step the rows of each tensor-parallel rank, a run of them each."""
    parts: list[list[int]] = [[] for _ in range(tps)]
    for step in np.unique(rows.step):
        for tp, run in enumerate(np.array_split(np.flatnonzero(rows.step == step), tps)):
            parts[tp] += run.tolist()
    return [np.array(part, int) for part in parts]


def whole(rows: TokenRows, dps: int) -> TokenRows:
    """`rows` in the order of a joined trace: a step's ranks one after the other."""
    return rows.select(np.lexsort((np.arange(len(rows)), rows.request % dps, rows.step)))


def assert_joined(trace: Trace, expected: TokenRows) -> None:
    """All columns but the numbers of requests, which need only tell the same ones apart."""
    np.testing.assert_array_equal(trace.step, expected.step)
    np.testing.assert_array_equal(trace.position, expected.position)
    np.testing.assert_array_equal(trace.phase, expected.phase)
    pairs = set(zip(trace.request.tolist(), expected.request.tolist(), strict=True))
    assert len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs})
    for n, layer in enumerate(LAYERS):
        seen = np.ones(len(expected), bool)
        if expected.recorded is not None:
            seen = expected.recorded[:, n]
        np.testing.assert_array_equal(trace.recorded(layer), seen)
        np.testing.assert_array_equal(trace.experts(layer), expected.experts[seen, n])


@settings(max_examples=20)  # of up to 27 traces each
@given(
    sizes=st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3)),
    steps=st.integers(1, 12),
    names=st.booleans(),
    read=st.sampled_from([3, 40, 4096]),
    seed=st.integers(0, 99),
)
def test_a_split_trace_is_joined_as_it_was(
    tmp_path_factory: pytest.TempPathFactory,
    sizes: tuple[int, int, int],
    steps: int,
    names: bool,
    read: int,
    seed: int,
) -> None:
    model = MoEModel.from_config(small_config())
    rows = served(steps, 5, seed)
    path = split(tmp_path_factory.mktemp("t") / "T", model, rows, sizes, names=names)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(joining, "_ROWS", read)
        trace = open_trace(path)
    assert_joined(trace, whole(rows, sizes[0]))
    assert trace.manifest.complete and trace.problems == ()
    seen = set(rows.request.tolist())
    assert len(trace.requests) == len(seen), "no request is counted twice"
    assert {r.index for r in trace.requests} == set(trace.request.tolist())
    assert len(trace.ranks) == np.prod(sizes)


def test_hashes_under_keys_of_their_own_tell_no_ranks_apart(
    tmp_path: Path, model: MoEModel
) -> None:
    """Then the numbers of one stage do, as where there are no names."""
    rows = served(20, 6, 3)
    path = split(tmp_path / "T", model, rows, (1, 2, 2))
    for number, rank in enumerate(sorted((path / "ranks").iterdir())):
        trace = open_trace(rank)
        requests = [replace(r, name=f"{number}-{r.index}") for r in trace.requests]
        parts = concat_rows(list(trace.rows()))
        shutil.rmtree(rank)
        write(rank, model, parts, trace.layers, requests, request_names="hashed")
    trace = open_trace(path)
    assert_joined(trace, rows)
    assert len(trace.requests) == 6


def test_merge_makes_it_permanent(
    tmp_path: Path, model: MoEModel, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = served(20, 6, 1)
    path = split(tmp_path / "T", model, rows, names=True)
    before = digest(path)
    assert main(["merge", str(path), "-o", str(tmp_path / "J"), "--quiet"]) == 0
    assert digest(path) == before
    assert_joined(open_trace(tmp_path / "J"), whole(rows, 2))
    info = validate_trace(path)
    assert info.problems == [] and info.tokens == len(rows) and info.bytes > 0
    assert info.ranks[0] == "dp00-pp00-tp00" and info.missing_ranks == []
    assert "ranks     8 (dp00-pp00-tp00" in trace_info_text(info)
    capsys.readouterr()
    assert main(["info", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["result"]["path"] == str(path)
    merge_traces([tmp_path / "J", path], tmp_path / "both")
    assert open_trace(tmp_path / "both").tokens == 2 * len(rows)
    merge_traces([tmp_path / "J"], path, force=True)
    assert not (path / "ranks").exists(), "a joined trace takes the place of ranks when forced"


def test_layers_of_a_missing_stage_are_not_recorded(tmp_path: Path, model: MoEModel) -> None:
    rows = served(20, 6, 2)
    path = split(tmp_path / "T", model, rows, (2, 3, 1), without=["dp01-pp01-tp00"])
    trace = open_trace(path)
    expected = whole(rows, 2)
    recorded = np.ones((len(rows), 3), bool)
    recorded[expected.request % 2 == 1, 1] = False
    assert_joined(trace, replace(expected, recorded=recorded))
    assert trace.missing_ranks == ("dp01-pp01-tp00",) and not trace.manifest.complete
    assert trace.problems == ("ranks/dp01-pp01-tp00: is missing, what it recorded is not in here",)
    assert "missing: dp01-pp01-tp00" in trace_info_text(validate_trace(path))


def test_a_stage_that_is_missing_everywhere_is_known_by_its_layers_or_by_what_ranks_say(
    tmp_path: Path, model: MoEModel
) -> None:
    rows = served(5, 3, 3)
    gone = [f"dp0{dp}-pp02-tp00" for dp in range(2)]
    trace = open_trace(split(tmp_path / "T", model, rows, (2, 3, 1), without=gone))
    assert trace.layers == (1, 2)
    assert trace.problems == ("layers 3: no rank that is here recorded them",)
    said = {"dp": 2, "pp": 3, "tp": 1}
    trace = open_trace(split(tmp_path / "S", model, rows, (2, 3, 1), without=gone, ranks=said))
    assert trace.missing_ranks == tuple(gone)


@pytest.mark.parametrize("names", [True, False])
@pytest.mark.parametrize("late", ["dp00-pp00-tp00", "dp00-pp01-tp00"])
def test_a_stage_that_began_later_ended_earlier_or_lost_steps(
    tmp_path: Path, model: MoEModel, names: bool, late: str
) -> None:
    """Its layers are missing in those steps, and its own numbers of requests do not confuse."""
    rows = served(30, 6, 4)
    there = (rows.step >= 6) & (rows.step < 25) & ~np.isin(rows.step, [10, 11])
    kind = "hashed" if names else "none"
    for pp, layers in ((0, [1]), (1, [2, 3])):
        name = f"dp00-pp0{pp}-tp00"
        mine = rows.select(np.flatnonzero(there)) if name == late else rows
        part, known = numbered(mine, names, 0)
        part, lost = with_layers(part, layers), len(rows) - len(mine)
        write(tmp_path / "T" / "ranks" / name, model, part, layers, known, request_names=kind)
        if name == late:
            edit_manifest(tmp_path / "T" / "ranks" / name, dropped={"behind": lost})
    trace = open_trace(tmp_path / "T")
    recorded = np.ones((len(rows), 3), bool)
    recorded[np.ix_(~there, [0] if late == "dp00-pp00-tp00" else [1, 2])] = False
    expected = replace(rows, recorded=recorded)
    assert trace.tokens == len(rows) and trace.dropped == {}, "another stage has every token"
    assert len(trace.requests) == 6
    assert_joined(trace, expected)


def test_a_step_of_which_stages_have_other_rows_is_joined_by_request_and_position(
    tmp_path: Path, model: MoEModel
) -> None:
    rows = served(12, 4, 5)
    rng = np.random.default_rng(0)
    kept = [rng.random(len(rows)) < 0.7, rng.random(len(rows)) < 0.7]
    for pp, layers in enumerate(([1], [2, 3])):
        part, known = numbered(rows.select(np.flatnonzero(kept[pp])), True, pp)
        name = f"dp00-pp0{pp}-tp00"
        part = with_layers(part, layers)
        write(tmp_path / "T" / "ranks" / name, model, part, layers, known, request_names="plain")
    trace = open_trace(tmp_path / "T")
    names = {request.index: request.name for request in trace.requests}
    found = {
        (int(trace.step[row]), names[int(trace.request[row])], int(trace.position[row])): (
            bool(trace.recorded(1)[row]),
            bool(trace.recorded(3)[row]),
        )
        for row in range(trace.tokens)
    }
    assert len(found) == trace.tokens, "no token is there twice"
    expected = {
        (int(rows.step[i]), f"id-{rows.request[i]}", int(rows.position[i])): (
            bool(kept[0][i]),
            bool(kept[1][i]),
        )
        for i in range(len(rows))
        if kept[0][i] or kept[1][i]
    }
    assert found == expected


def test_counts_add_up(tmp_path: Path, model: MoEModel) -> None:
    rows = served(40, 6, 6)
    path = split(tmp_path / "T", model, rows, (2, 2, 2), aggregate_steps=7)
    trace = open_trace(path)
    assert stored_counts_of(trace) == counted(rows, 7, LAYERS)
    assert trace.tokens == trace.manifest.tokens == len(rows)
    assert validate_trace(path).problems == []
    merge_traces([path], tmp_path / "J")
    assert stored_counts(tmp_path / "J") == counted(rows, 7, LAYERS)


def stored_counts_of(trace: Trace) -> Any:
    assert trace.path is not None
    return stored_counts(trace.path)


def test_what_ranks_left_out_adds_up_over_requests_and_not_over_layers(
    tmp_path: Path, model: MoEModel
) -> None:
    rows = served(5, 4, 7)
    options = {"sampling": {"rate": 0.5, "seed": 1}}
    path = split(tmp_path / "T", model, rows, (2, 2, 1), **options)
    for rank in (path / "ranks").iterdir():
        edit_manifest(
            rank,
            dropped={"behind": 5},
            rotated_tokens=3,
            tokens_sampled_out=11,
            requests_sampled_out=2,
        )
    info = validate_trace(path)
    assert (info.dropped, info.rotated_tokens) == ({"behind": 10}, 6)
    assert (info.tokens_sampled_out, info.requests_seen) == (22, 4 + 4)


def test_times_and_samples(tmp_path: Path, model: MoEModel) -> None:
    for dp, base in ((0, 1000.0), (1, 990.0)):
        path = tmp_path / "T" / "ranks" / f"dp0{dp}-pp00-tp00"
        with TraceWriter(path, model, clock_base=base, request_names="hashed") as out:
            out.put_request(Request(0, arrival_s=5.0, name="same", output_tokens=dp + 1))
            out.put_telemetry(TelemetrySample(1.0, dp))
    trace = open_trace(tmp_path / "T")
    assert [request.arrival_s for request in trace.requests] == [15.0, 5.0]
    assert [sample.time_s for sample in trace.telemetry] == [1.0, 11.0]
    assert trace.manifest.clock_base == 990.0
    edit_manifest(tmp_path / "T" / "ranks" / "dp00-pp00-tp00", clock_base=2000.0)
    assert "began 1,010 s after others" in open_trace(tmp_path / "T").problems[0]


RECORDER = """
import json, sys, time
import numpy as np
from dataclasses import replace
from moeprof.model import MoEModel
from moeprof.trace import TraceWriter
from tests.trace.test_ranks import served, with_layers
model = MoEModel.from_config(json.loads(sys.argv[2]))
rows = with_layers(served(1, 5, 0), [1])
writer = TraceWriter(sys.argv[1], model, layers=[1])
for step in range(10**6):
    writer.write(replace(rows, step=np.full(len(rows), step)))
    writer.tick()
    print(step, time.monotonic(), flush=True)
    time.sleep(0.002)
"""


def test_a_rank_that_was_killed_is_said_to_be_cut_off(tmp_path: Path, model: MoEModel) -> None:
    killed = tmp_path / "T" / "ranks" / "dp00-pp00-tp00"
    due, last = progress_until_killed(
        RECORDER, str(killed), json.dumps(small_config()), seconds=1.3
    )
    rows = served(1, 5, 0)
    steps = np.repeat(np.arange(last + 50), len(rows))
    every = rows.select(np.tile(np.arange(len(rows)), last + 50))
    write(
        tmp_path / "T" / "ranks" / "dp00-pp01-tp00",
        model,
        replace(with_layers(every, [2, 3]), step=steps),
        [2, 3],
        size=10**6,
    )
    trace = open_trace(tmp_path / "T")
    assert trace.tokens == len(every) and trace.recorded(2).all()
    there = trace.step[trace.recorded(1)]
    assert due <= there.max() <= last and (np.unique(there) == np.arange(there.max() + 1)).all()
    assert "ranks/dp00-pp00-tp00: was cut off, what of it can be read is joined" in trace.problems
    assert not trace.manifest.complete


def test_damage_of_a_rank_is_said_to_be_its(tmp_path: Path, model: MoEModel) -> None:
    path = split(tmp_path / "T", model, served(30, 6, 8), (2, 1, 1))
    segment = path / "ranks" / "dp01-pp00-tp00" / "segments" / "000000.arrows"
    content = bytearray(segment.read_bytes())
    content[-200] ^= 1
    segment.write_bytes(bytes(content))
    problems = validate_trace(path).problems
    assert any(
        problem.startswith("ranks/dp01-pp00-tp00: segments/000000.arrows: content differs")
        for problem in problems
    )


def test_folders_copied_from_several_nodes_are_joined(tmp_path: Path, model: MoEModel) -> None:
    rows = served(15, 5, 9)
    path = split(tmp_path / "T", model, rows, (2, 2, 1))
    for node in (0, 1):
        for rank in (path / "ranks").glob(f"dp0{node}-*"):
            shutil.copytree(rank, tmp_path / f"node{node}" / "ranks" / rank.name)
    one = open_trace(tmp_path / "node1")
    assert one.tokens == (rows.request % 2 == 1).sum()
    assert one.missing_ranks == ("dp00-pp00-tp00", "dp00-pp01-tp00")
    shutil.copytree(tmp_path / "node1", tmp_path / "node0", dirs_exist_ok=True)
    assert_joined(open_trace(tmp_path / "node0"), whole(rows, 2))


def test_what_is_no_rank_is_refused(tmp_path: Path, model: MoEModel) -> None:
    rows = served(4, 3, 0)
    path = split(tmp_path / "T", model, rows, (1, 1, 1))
    good = path / "ranks" / "dp00-pp00-tp00"

    def refused(sentence: str) -> None:
        with pytest.raises((TraceError, InputError), match=sentence) as caught:
            open_trace(path)
        assert "\n" not in str(caught.value)

    for name in ("dp00-pp00", "dp00-pp00-tp00.bak", "..dp", "dp00-pp00-tp\n0", "dp\u0660-pp0-tp0"):
        (path / "ranks" / name).mkdir()
        refused("is no rank, they are named as dp00-pp00-tp00")
        (path / "ranks" / name).rmdir()
    link = path / "ranks" / "dp01-pp00-tp00"
    link.symlink_to(good, target_is_directory=True)
    refused("is a link")
    link.unlink()
    shutil.copytree(good, path / "ranks" / "dp0-pp0-tp0")
    refused("is the same rank as")
    shutil.rmtree(path / "ranks" / "dp0-pp0-tp0")
    link.mkdir()
    refused("not a trace")
    link.rmdir()
    shutil.copytree(good, path / "ranks" / "dp00-pp01-tp00")
    refused("layer 1 was recorded by dp00-pp00-tp00, too")
    edit_manifest(path / "ranks" / "dp00-pp01-tp00", weights=True)
    refused("'weights' is True, not False as in dp00-pp00-tp00: these ranks are not of one")
    shutil.rmtree(path / "ranks")
    (tmp_path / "elsewhere").mkdir()
    (path / "ranks").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    refused("is a link")
    (path / "ranks").unlink()
    (path / "ranks").mkdir()
    refused("holds no ranks")


def test_files_of_ranks_are_the_owners_alone(tmp_path: Path, model: MoEModel) -> None:
    path = split(tmp_path / "T", model, served(4, 3, 0), (1, 2, 1))
    trace = open_trace(path)
    assert trace.path is not None
    for root in (path, trace.path.parent):
        for entry in [root, *root.rglob("*")]:
            assert entry.stat().st_mode & 0o777 == (0o700 if entry.is_dir() else 0o600), entry


def test_memory_is_that_of_a_few_thousand_rows(tmp_path: Path, model: MoEModel) -> None:
    rows = served(900, 12, 1)
    path = split(tmp_path / "T", model, rows, (1, 2, 1))
    sizes: list[int] = []
    write_rows = TraceWriter.write

    def seen(self: TraceWriter, part: TokenRows) -> bool:
        sizes.append(len(part))
        return write_rows(self, part)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(joining, "_ROWS", 128)
        patch.setattr(TraceWriter, "write", seen)
        trace = open_trace(path)
    assert sum(sizes) == trace.tokens == len(rows) > 5000
    assert max(sizes) <= 2 * 128
