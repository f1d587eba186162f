"""The simulation of a whole deployment, and its command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from moeprof.cli.main import main
from moeprof.errors import InfeasibleError, InputError
from moeprof.projection import project_deployment, shipped_laws
from moeprof.projection.serving import make_load
from moeprof.projection.serving.project import ServingProjection, project_serving

SHAPE: dict[str, Any] = {"precision": "mxfp8"}


def closed(concurrency: int, **options: Any) -> ServingProjection:
    load = make_load(concurrency=concurrency, input_len=2048, output_len=128)
    return project_serving("minimax-m3", "8xh200", load, **(SHAPE | options))


def test_one_request_at_a_time_is_what_project_says() -> None:
    steady = project_deployment(
        "minimax-m3", "8xh200", concurrency=1, input_len=2048, output_len=128, **SHAPE
    )
    assert steady.tpot_ms is not None
    assert closed(1).tpot_ms["p50"] == pytest.approx(steady.tpot_ms.value, rel=0.05)


def test_bands_hold_the_values_and_say_what_they_rest_on() -> None:
    served = closed(8)
    for name in ("ttft_ms", "tpot_ms", "itl_ms", "e2e_ms"):
        for key, value in getattr(served, name).items():
            low, high = served.bands[name][key]  # type: ignore[index, misc]
            assert low < value < high
    low, high = served.bands["output_tok_s"]  # type: ignore[misc]
    assert low < served.output_tok_s < high  # type: ignore[operator]
    band = shipped_laws().bands["ttft"][served.familiarity]
    low, high = served.bands["ttft_ms"]["p50"]  # type: ignore[index, misc]
    value = served.ttft_ms["p50"]
    assert low <= value * band.low and value * band.high <= high  # type: ignore[operator]
    assert served.provenance.value in ("fitted", "assumed")
    assert served.source


def test_more_ranks_hold_more_kv_and_less_memory_makes_requests_wait() -> None:
    assert closed(4, dp=2).kv_capacity_tokens != closed(4).kv_capacity_tokens
    tight = closed(32, kv_tokens=10_000)
    assert tight.queue_mean > closed(32).queue_mean
    assert tight.ttft_ms["p50"] > closed(32).ttft_ms["p50"]  # type: ignore[operator]


def test_what_does_not_fit_is_infeasible() -> None:
    load = make_load(concurrency=1, input_len=10, output_len=10)
    with pytest.raises(InfeasibleError, match="does not fit"):
        project_serving("minimax-m3", "2xh200", load, precision="bf16")
    with pytest.raises(InputError, match="does not fit into a KV cache"):
        closed(1, kv_tokens=1000)


def test_the_command_answers_in_json_and_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    line = "serve-sim minimax-m3 --hardware 8xh200 --precision mxfp8 --rate 2 --workload chat"
    options = [*line.split(), "--num-requests", "60", "--ttft-ms", "150", "--tpot-ms", "50"]
    assert main([*options, "--json"]) == 0
    first = json.loads(capsys.readouterr().out)
    assert first["schema"] == "moeprof.serve-sim/1"
    result = first["result"]
    for name in ("ttft_ms", "tpot_ms"):
        spread = result[name]
        assert 0 < spread["p50"] <= spread["p90"] <= spread["p99"]
    assert 0 < result["goodput"] <= result["requests_per_s"]
    assert main([*options, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["result"] == result
    assert main(options) == 0
    text = capsys.readouterr().out
    assert "Goodput" in text and "TTFT" in text and "Azure LLM inference trace" in text
    assert max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--rate 1", "say how long requests are"),
        ("--workload chat", "say when requests come"),
        ("--workload x --rate 1", "no workload 'x'"),
        ("--workload chat --rate 1 --engine mlx", "no engine 'mlx'"),
        ("--workload chat --rate 1 --acceptance-len 2", "2.0 tokens a step"),
        ("--workload chat --rate 1 --ttft-ms -1", "the target ttft_ms is -1"),
        ("--requests none.csv --rate 1", "none.csv"),
    ],
)
def test_bad_input_gets_one_line(
    options: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["serve-sim", "minimax-m3", "--hardware", "8xh200", "--precision", "mxfp8"]
    assert main([*line, *options.split()]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_a_model_that_does_not_fit_ends_with_4(capsys: pytest.CaptureFixture[str]) -> None:
    line = "serve-sim minimax-m3 --hardware 2xh200 --concurrency 1 --input-len 9 --output-len 9"
    assert main(line.split()) == 4
    assert "does not fit" in capsys.readouterr().err


def test_a_file_of_requests_is_among_the_inputs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "r.csv"
    path.write_text("arrival_s,input_len,output_len\n0,100,10\n1,200,20\n")
    line = ["serve-sim", "minimax-m3", "--hardware", "8xh200", "--precision", "mxfp8", "--json"]
    assert main([*line, "--requests", str(path)]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [each["path"] for each in document["inputs"]] == [str(path)]
    assert document["result"]["requests"] == 2


def test_a_recording_changes_what_steps_read(capsys: pytest.CaptureFixture[str]) -> None:
    line = "serve-sim minimax-m3 --hardware 8xh200 --precision mxfp8 --concurrency 8 --json"
    options = [*line.split(), "--input-len", "512", "--output-len", "64", "--num-requests", "16"]
    assert main(options) == 0
    even = json.loads(capsys.readouterr().out)["result"]
    recording = str(Path(__file__).parents[3] / "traces" / "tiny-m3.moetrace")
    assert main([*options, "--trace", recording, "--transfer", "distinct-ratio", "--quiet"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["result"]["tpot_ms"]["p50"] != even["tpot_ms"]["p50"]
    assert [each["path"] for each in document["inputs"]] == [recording]
