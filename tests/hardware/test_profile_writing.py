"""What is written is what is read again."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from moeprof.errors import InputError
from moeprof.hardware import FIGURE_UNITS, Figure, HardwareProfile, Kind, LinkRole, list_hardware
from moeprof.hardware.loading import read_parts
from moeprof.hardware.profile_writing import write_machine
from moeprof.quantity import Provenance

POSITIVE = st.floats(min_value=1e-9, max_value=1e18)
TEXT = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=30)


@st.composite
def figures(draw: st.DrawFn) -> tuple[str, Figure]:
    name = draw(st.sampled_from(sorted(FIGURE_UNITS)))
    low, value, high = sorted(draw(st.tuples(POSITIVE, POSITIVE, POSITIVE)))
    band = (low, high) if draw(st.booleans()) else (None, None)
    figure = Figure(
        value,
        FIGURE_UNITS[name],
        draw(st.sampled_from(Provenance)),
        *band,
        source=draw(TEXT),
        verified=draw(st.booleans()),
        method=draw(st.just("") | TEXT),
        by_threads=tuple(draw(st.lists(st.tuples(st.integers(1, 512), POSITIVE), max_size=3))),
    )
    return name, figure


@st.composite
def profiles(draw: st.DrawFn) -> HardwareProfile:
    kind = draw(st.sampled_from(Kind))
    return HardwareProfile(
        name=draw(TEXT),
        title=draw(TEXT),
        vendor=draw(st.just("") | TEXT),
        figures=dict(draw(st.lists(figures(), max_size=3))),
        scale_up_link=draw(st.just("") | TEXT),
        host_link=draw(st.just("") | TEXT),
        aliases=tuple(draw(st.lists(TEXT, max_size=2))),
        kind=kind,
        role=draw(st.sampled_from(LinkRole)) if kind is Kind.LINK else None,
    )


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(st.tuples(profiles(), st.integers(1, 99)), min_size=1, max_size=3))
def test_a_machine_survives_its_file(
    tmp_path: Path, parts: list[tuple[HardwareProfile, int]]
) -> None:
    path = tmp_path / "machine.toml"
    write_machine(parts, path)
    assert read_parts(path) == (parts, 1)


def test_every_profile_that_ships_survives_too(tmp_path: Path) -> None:
    path = tmp_path / "all" / "of-them.toml"
    parts = [(profile, 1) for profile in list_hardware().profiles]
    write_machine(parts, path)
    assert read_parts(path) == (parts, 1)
    assert [file.name for file in path.parent.iterdir()] == ["of-them.toml"]


def test_what_cannot_be_written_is_an_error_and_leaves_no_draft(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        write_machine([(list_hardware().profiles[0], 1)], tmp_path / "file" / "m.toml")
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match="is a folder, name a file"):
        write_machine([(list_hardware().profiles[0], 1)], tmp_path / "folder")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["file", "folder"]
