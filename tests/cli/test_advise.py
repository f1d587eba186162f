"""`moeprof advise`: the keys of its JSON, its exit codes, and one clear line for what is wrong."""

from __future__ import annotations

import json
from typing import Any

import pytest

from moeprof.cli.main import main


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """(exit code, stdout, stderr)."""
    code = main(["advise", "minimax-m3", *map(str, arguments)])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def test_options_have_the_keys_that_users_rely_on(capsys: pytest.CaptureFixture[str]) -> None:
    asked = ("--hardware", "8xh200,4xb200", "--tpot-ms", 40, "--ttft-ms", 3000, "--json")
    code, out, _ = run(capsys, *asked)
    document: dict[str, Any] = json.loads(out)
    assert code == 0 and document["schema"] == "moeprof.advise/1"
    for option in document["result"]["options"]:
        assert option["gpus"] in (4, 8) and option["command"].startswith("vllm serve ")
        assert set(option["parallelism"]) == {"tp", "ep", "dp", "pp"}
        for name in ("tpot_ms", "ttft_ms", "output_tok_s", "cost_per_million_tokens"):
            assert option[name]["low"] <= option[name]["value"] <= option[name]["high"]
            assert option[name]["provenance"] in ("fitted", "specified", "assumed")


def test_the_text_has_commands_that_can_be_copied(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "--hardware", "4xb200", "--tpot-ms", 40, "--top", 1)
    assert code == 0
    assert "\n1  vllm serve " in out and "First: " in out
    assert all(len(line) <= 80 for line in out.splitlines() if "vllm serve" not in line)


def test_what_cannot_be_met_ends_with_4(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "--hardware", "8xh200", "--tpot-ms", 1)
    assert code == 4 and "None meets the targets. Nearest: TPOT " in out
    code, out, _ = run(capsys, "--hardware", "rtx-4090", "--tpot-ms", 1, "--json")
    result = json.loads(out)["result"]
    assert code == 4 and result["options"] == [] and result["nearest"]["short_bytes"] > 0


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        (("--hardware", "8xh2000", "--tpot-ms", 30), "no GPU, host, link or drive 'h2000'"),
        (("--hardware", "8xh200", "--tpot-ms", -1), "tpot_ms is -1"),
        (("--hardware", "8xh200", "--workload", "chess"), "no workload 'chess'"),
        (("--hardware", "8xh200", "--engine", "tgi"), "engine 'tgi' is not one of"),
        (("--hardware", "8xh200", "--precision", "fp7"), "no weight format 'fp7'"),
        (("--hardware", "8xh200", "--top", 0), "--top is 0"),
        (("--hardware", "8xh200", "--precision", ","), "names nothing"),
        (("--hardware", "8xh200", "--input-len", 2_000_000), "takes 1,048,576 at most"),
    ],
)
def test_bad_input_is_one_line(
    capsys: pytest.CaptureFixture[str], wrong: tuple[object, ...], named: str
) -> None:
    code, out, err = run(capsys, *wrong)
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert named in err


def test_consumer_machines_and_models_side_by_side(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "--consumer", "--hardware", "4xrtx-pro-6000", "--json")
    options = json.loads(out)["result"]["options"]
    assert code == 0 and {option["engine"] for option in options} == {"vllm", "llamacpp"}
    code, out, _ = run(capsys, "--consumer", "--hardware", "strix-halo")
    assert code == 4 and "does not fit" in out
    _, out, _ = run(capsys, "--consumer")
    assert all(len(line) <= 80 for line in out.split("\n\n")[1].splitlines())
    asked = ("--hardware", "8xh200", "--tpot-ms", 50, "--compare", "llama-3.1-70b")
    code, out, _ = run(capsys, *asked)
    assert code == 0 and "llama-3.1-70b: fp8 on 8xh200-sxm" in out
    assert all(len(line) <= 80 for line in out.splitlines() if "vllm serve" not in line)
    code, _, err = run(capsys, "--tpot-ms", 50)
    assert code == 2 and "--hardware is missing" in err
