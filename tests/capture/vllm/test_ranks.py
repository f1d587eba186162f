"""Which ranks write, where, and which rows are theirs: against a brute-force layout."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moeprof.capture.vllm.plugin import armed
from moeprof.capture.vllm.ranks import Rank
from moeprof.capture.vllm.row_layout import own_rows
from moeprof.errors import InputError

SIZES = st.lists(st.integers(1, 9), min_size=1, max_size=4)


def ranks(dp: int, tp: int, *, sp: bool = False) -> list[Rank]:
    return [
        Rank(d, 0, t, dp_size=dp, tp_size=tp, sequence_parallel=sp)
        for d in range(dp)
        for t in range(tp)
    ]


def kept(
    rank: Rank, seen: np.ndarray, sizes: list[int], shards: list[int] | None
) -> dict[int, int]:
    """Step row -> what stood there, as this rank keeps it."""
    own = own_rows(rank, len(seen), sizes, shards)
    assert own is not None
    return {own.step_first + i: int(seen[own.first + i]) for i in range(own.count)}


@given(sizes=SIZES, tp=st.integers(1, 4), layout=st.sampled_from(["all", "own"]))
def test_every_row_is_kept_once_and_in_its_place(sizes: list[int], tp: int, layout: str) -> None:
    """Tokens are numbered 1000 * dp + row; each rank sees all of them, or its own dp's."""
    tokens = [1000 * d + np.arange(n) for d, n in enumerate(sizes)]
    for rank in ranks(len(sizes), tp):
        seen = np.concatenate(tokens) if layout == "all" else tokens[rank.dp]
        rows = kept(rank, seen, sizes, None)
        expected = {i: 1000 * rank.dp + i for i in range(sizes[rank.dp])}
        assert rows == (expected if rank.writes else {})


@given(sizes=SIZES, tp=st.integers(2, 4), gathered=st.booleans())
def test_shards_of_sequence_parallelism_make_the_whole(
    sizes: list[int], tp: int, gathered: bool
) -> None:
    """Each tensor parallel rank routes its part of the rows, padded to equal parts with -1."""
    shards = {}
    for rank in ranks(len(sizes), tp):
        own = 1000 * rank.dp + np.arange(sizes[rank.dp])
        size = -(-len(own) // tp)
        padded = np.full(size * tp, -1)
        padded[: len(own)] = own
        shards[rank.dp, rank.tp] = padded[rank.tp * size : (rank.tp + 1) * size]
    lengths = [len(shard) for shard in shards.values()]
    for d, n in enumerate(sizes):
        whole: dict[int, int] = {}
        for rank in [r for r in ranks(len(sizes), tp, sp=True) if r.dp == d]:
            seen = np.concatenate(list(shards.values())) if gathered else shards[d, rank.tp]
            rows = kept(rank, seen, sizes, lengths if gathered else None)
            assert not set(rows) & set(whole)
            whole |= rows
        assert whole == {i: 1000 * d + i for i in range(n)}


def test_a_number_that_no_layout_explains_is_refused() -> None:
    assert own_rows(Rank(dp_size=2), 7, [4, 5], None) is None
    assert own_rows(Rank(dp_size=2), 7, [4, 5], [2, 2, 3, 4]) is None


def test_one_writer_has_the_path_and_several_a_folder_each(tmp_path: Path) -> None:
    out = tmp_path / "t"
    assert Rank(tp_size=4).path(out) == out
    assert Rank(tp_size=4).writers == 1
    assert not Rank(tp=1, tp_size=4).writes
    rank = Rank(1, 2, 0, dp_size=2, pp_size=3, tp_size=4)
    assert rank.writers == 6
    assert rank.path(out) == out / "ranks" / "dp01-pp02-tp00"
    spread = Rank(1, 0, 3, dp_size=2, tp_size=4, sequence_parallel=True)
    assert spread.writers == 8
    assert spread.writes


def test_what_belongs_to_another_deployment_is_not_mixed_in(tmp_path: Path) -> None:
    out = tmp_path / "t"
    one, two = Rank(), Rank(dp_size=2)
    one.check(out)
    (out / "ranks" / "dp01-pp00-tp00").mkdir(parents=True)
    two.check(out)
    with pytest.raises(InputError, match="ranks of another"):
        one.check(out)
    (out / "ranks" / "dp02-pp00-tp00").mkdir()
    with pytest.raises(InputError, match="dp02"):
        two.check(out)
    (out / "manifest.json").touch()
    with pytest.raises(InputError, match="one rank"):
        two.check(out)


def test_armed_only_where_the_operator_says_so() -> None:
    assert not armed({})
    assert not armed({"VLLM_PLUGINS": "other", "MOEPROF_OUTPUT": ""})
    assert armed({"VLLM_PLUGINS": "other,moeprof"})
    assert armed({"MOEPROF_OUTPUT": "t"})


def test_off_the_entry_point_imports_and_patches_nothing() -> None:
    code = (
        "import sys; before = list(sys.meta_path)\n"
        "from moeprof.capture.vllm.plugin import register\n"
        "register(); register()\n"
        "assert sys.meta_path == before\n"
        "heavy = {'numpy', 'pyarrow', 'pydantic', 'torch', 'vllm', 'logging'} & set(sys.modules)\n"
        "sys.exit(', '.join(sorted(heavy)) or 0)"
    )
    environment = {"PYTHONPATH": str(Path(__file__).parents[3])}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
