"""The timeline: no track does two things at once, it ends when the plan says, and it is valid."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose

from moeprof.cli.main import main
from moeprof.errors import InputError
from moeprof.model import MoEModel
from moeprof.offload import KINDS, TRACKS, OffloadPlan, draw_timeline, plan_offload
from moeprof.offload.stepping import time_steps
from moeprof.report.perfetto import timeline_events, write_perfetto
from moeprof.trace import Trace, synthesize_rows
from tests.conftest import save
from tests.offload.test_plan import ROUTED, SMALL, room_for


@pytest.fixture(params=["copy", "cpu", "auto", "copy-in-turn"])
def plan(request: pytest.FixtureRequest, model: MoEModel) -> OffloadPlan:
    trace = Trace.in_memory(SMALL, *synthesize_rows(SMALL, 200, requests=1))
    serve, _, turns = request.param.partition("-")
    return plan_offload(
        trace,
        SMALL,
        "rtx-4090+epyc-9005+nvme-gen4",
        vram_bytes=room_for(4, 200),
        ram_bytes=(4 << 30) + 20 * ROUTED,
        policy="static",  # nothing crosses the link behind
        serve=serve,
        overlap=not turns,
    )


def test_no_track_does_two_things_at_once(plan: OffloadPlan) -> None:
    slices = draw_timeline(plan, 10)
    assert set(KINDS[kind] for kind in slices["kind"]) >= {"experts", "reads", "step"}
    for track in range(len(TRACKS)):
        mine = slices[slices["track"] == track]
        ends = mine["start_s"] + mine["seconds"]
        assert (ends[:-1] <= mine["start_s"][1:] + 1e-12).all()


def test_it_takes_as_long_as_the_plan_says(plan: OffloadPlan) -> None:
    slices = draw_timeline(plan, 10_000)
    times = time_steps(plan.traffic, plan.work, plan.rates.at("middle"), plan.service)
    end = (slices["start_s"] + slices["seconds"]).max()
    assert_allclose(end, times.seconds.sum())
    assert_allclose(plan.tokens / end, plan.tok_s)


def test_bytes_of_the_slices_are_those_of_the_events(plan: OffloadPlan) -> None:
    events = timeline_events(plan, 10_000)
    reads = sum(e["args"]["drive_bytes"] for e in events if e["name"] == "reads")
    assert_allclose(reads / plan.tokens, plan.rows[0].bytes_per_token["drive"])
    copies = sum(e["args"]["copied_bytes"] for e in events if e["name"] == "copies")
    assert_allclose(copies / plan.tokens, plan.rows[0].bytes_per_token["link"])


def test_it_is_a_chrome_trace(plan: OffloadPlan, tmp_path: Path) -> None:
    path = tmp_path / "timeline.json"
    write_perfetto(plan, path, steps=2)
    document = json.loads(path.read_text())
    events = document["traceEvents"]
    named = {e["tid"]: e["args"]["name"] for e in events if e["name"] == "thread_name"}
    assert named == dict(enumerate(TRACKS))
    for event in events:
        assert {"name", "ph", "pid", "tid", "args"} <= set(event)
        assert event["ph"] in ("X", "M")
        if event["ph"] == "X":
            assert event["ts"] >= 0
            assert event["dur"] > 0
            assert event["tid"] in named
            assert event["args"]["step"] in (0, 1)
            if "layer" in event["args"]:
                assert event["args"]["layer"] in SMALL.moe_layers
    with pytest.raises(InputError, match="--force"):
        write_perfetto(plan, path)
    write_perfetto(plan, path, force=True)
    with pytest.raises(InputError, match="at least 1"):
        draw_timeline(plan, 0)


def test_the_command_writes_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace = save(tmp_path / "a.moetrace", SMALL, *synthesize_rows(SMALL, 100, requests=1))
    config = tmp_path / "config.json"
    from tests.conftest import small_config

    config.write_text(json.dumps(small_config()))
    out = tmp_path / "timeline.json"
    command = ["offload", str(trace), str(config), "--hardware", "rtx-4090+epyc-9005"]
    assert main([*command, "--policy", "lru", "--perfetto", str(out), "--steps", "3"]) == 0
    steps = {e["args"].get("step") for e in json.loads(out.read_text())["traceEvents"]}
    assert steps == {None, 0, 1, 2}
    assert np.isfinite(json.loads(out.read_text())["traceEvents"][-1]["dur"])
    capsys.readouterr()
