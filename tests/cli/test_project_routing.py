"""`project routing`: the side by side on the command line."""

from __future__ import annotations

import json

import pytest

from moeprof.cli.main import main
from tests.recordings import SHIPPED

LINE = ["project", "routing", str(SHIPPED), "--model", "minimax-m3", "--hardware", "8xh200"]
SHORT = ["--tokens", "8,64", "--transfer", "distinct-ratio", "--quiet"]


def test_the_json_has_every_routing_with_its_band(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*LINE, *SHORT, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["schema"] == "moeprof.project.routing/1"
    found = document["result"]
    assert found["routings"] == ["uniform", "trace, carried over", "placed, carried over"]
    assert (found["ranks"], found["transfer"]) == (8, "distinct-ratio")
    time = found["rows"][0]["cells"][1]["moe_ms"]
    assert time["low"] < time["value"] < time["high"]
    assert (time["unit"], time["provenance"]) == ("ms", "assumed")


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (LINE, "--transfer distinct-ratio"),
        (["project", "routing", str(SHIPPED)], "--gpus is missing"),
        (["project", "routing", str(SHIPPED), "--gpus", "8", "--phase", "all"], "--phase"),
        (["project", "routing", str(SHIPPED), "--gpus", "7", "--redundant", "0"], "divide"),
        (["project", "routing", str(SHIPPED), "--gpus", "0"], "0 ranks"),
        (["project", "routing", str(SHIPPED), "--gpus", "8", "--tokens", "0"], "from 1"),
        (["project", "routing", str(SHIPPED), "--gpus", "8", "--label", "x"], "labels are"),
    ],
)
def test_what_makes_no_sense_gets_one_line(
    line: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*line, "--quiet"]) == 2
    err = capsys.readouterr().err
    assert says in err
    assert len(err.strip().splitlines()) == 1
