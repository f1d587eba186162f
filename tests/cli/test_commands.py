"""What users rely on: JSON keys, exit codes, one clear line for what is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from moeprof.cli import info
from moeprof.cli.main import COMMANDS, find_verb, main, overview
from tests.model.test_moe_model import M3

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """A function that runs a command line and returns exit code, stdout and stderr."""

    def call(*arguments: object) -> tuple[int, str, str]:
        code = main([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return call


def result(out: str, verb: str) -> dict[str, Any]:
    document = json.loads(out)
    assert document["schema"] == f"moeprof.{verb}/1"
    assert document["timing"]["seconds"] >= 0
    answer: dict[str, Any] = document["result"]
    return answer


def test_models_show_gives_m3_exactly(run: Run) -> None:
    code, out, _ = run("models", "show", "minimax-m3", "--json")
    shown = result(out, "models.show")
    assert code == 0
    assert (shown["layers"], shown["moe_layers"], shown["experts"], shown["top_k"]) == (
        60,
        57,
        128,
        4,
    )
    assert shown["parameters"] == M3
    assert shown["bytes_per_expert"]["bf16"] == 113_246_208
    assert shown["bytes_per_expert"]["q4_k"] == 31_850_496
    assert shown["kv_bytes_per_token_per_rank"] == 61_440 * 2 + 7_296 * 2


def test_models_show_has_what_stands_beside_the_count(run: Run) -> None:
    shown = result(run("models", "show", "deepseek-v3", "--tp", 8, "--json")[1], "models.show")
    assert shown["prediction_parameters"] == 13_463_426_304
    assert shown["attention"]["latent_dim"] == 576
    assert shown["kv_bytes_per_token_per_rank"] == 70_272
    hybrid = result(run("models", "show", "qwen3.5-397b-a17b", "--json")[1], "models.show")
    assert hybrid["state_bytes_per_sequence_per_rank"] == 45 * (64 * 128 * 128 * 4 + 12_288 * 3 * 2)
    assert hybrid["linear"]["layers"] == 45


def test_prediction_modules_can_be_loaded(run: Run) -> None:
    line = ("project", "deepseek-v3", "--hardware", "8xh200", "--precision", "fp8_block", "--json")
    without, with_it = (result(run(*line, *flag)[1], "project") for flag in ((), ("--mtp",)))
    assert without["memory"]["prediction"] == 0
    assert with_it["memory"]["prediction"] == without["ledger"]["left_out"]["prediction"]["value"]
    code, _, err = run("project", "minimax-m3", "--hardware", "8xh200", "--mtp")
    assert (code, "no modules for multi-token prediction" in err) == (2, True)


def test_kv_bytes_follow_the_flags(run: Run) -> None:
    _, out, _ = run(
        "models", "show", "minimax-m3", "--tp", 2, "--kv-dtype", "fp8", "--index-dtype", "fp8",
        "--json",
    )  # fmt: skip
    assert result(out, "models.show")["kv_bytes_per_token_per_rank"] == 38_016


@pytest.mark.parametrize(
    "arguments",
    [
        ["models", "list"],
        ["models", "show", "qwen3-30b-a3b"],
        ["models", "show", "llama-3.1-70b"],
        ["hardware", "list"],
        ["project", "minimax-m3", "--hardware", "8xh200", "--precision", "nvfp4"],
        ["hardware", "show", "8xh200"],
        ["info", "T"],
        ["validate", "T"],
        ["analyze", "load", "T"],
        ["analyze", "load", "T", "--gpus", "4"],
        ["cache", "T", "--policy", "lru,static", "--slots", "4,8"],
        ["cache", "T", "--slots", "4", "--max-num-seqs", "3", "--max-num-batched-tokens", "64"],
        ["cache", "verdict", "T", "--slots", "8"],
        ["cache", "prefetch", "T", "--slots", "4", "--link-experts-per-layer", "2"],
        ["cache", "prefetch", "T", "--fraction", "0.3", "--predictor", "markov", "--width", "2"],
        ["cache", "curve", "T"],
        ["cache", "curve", "T", "--scope", "global", "--phase", "decode"],
    ],
    ids=" ".join,
)
def test_answers_in_words_and_in_json(
    run: Run, saved: Callable[..., Path], arguments: list[str]
) -> None:
    trace = str(saved())
    line = [trace if word == "T" else word for word in arguments]
    code, text, err = run(*line)
    assert (code, err) == (0, "")
    told = text.partition("\nNext:")[0]  # a command to copy is as long as its paths
    assert max(map(len, told.splitlines())) <= 100
    code, out, err = run(*line, "--json")
    assert (code, err) == (0, "")
    assert result(out, find_verb(line).replace(" ", "."))


def test_the_keys_of_the_contract(run: Run, saved: Callable[..., Path]) -> None:
    trace = saved()
    info_keys = {"tokens", "layers", "experts", "top_k", "requests", "labels", "dropped"}
    assert info_keys | {"problems"} <= set(result(run("info", trace, "--json")[1], "info"))
    load = result(run("analyze", "load", trace, "--json")[1], "analyze.load")
    layer_keys = {"layer", "imbalance", "balancedness", "gini", "entropy"}
    assert layer_keys <= set(load["per_layer"][0])
    assert load["mean_imbalance"] >= 1
    curve = result(run("cache", "curve", trace, "--json")[1], "cache.curve")
    assert len(curve["slots"]) == len(curve["hit_ratio"]) == len(curve["bytes_per_token"]) == 16
    assert curve["token_cycle"] == 9


def test_what_does_not_fit_is_an_answer_with_4(run: Run) -> None:
    code, out, err = run("project", "minimax-m3", "--hardware", "4xh100", "--json")
    answer = result(out, "project")
    assert (code, err, answer["fits"]) == (4, "", False)
    memory = answer["memory"]
    assert sum(size for name, size in memory.items() if name != "total") == memory["total"]


def test_inputs_are_named_with_their_digest(run: Run, saved: Callable[..., Path]) -> None:
    document = json.loads(run("info", saved(), "--json")[1])
    assert document["inputs"][0]["path"].endswith("run.moetrace")
    assert len(document["inputs"][0]["sha256"]) == 64


def test_same_input_same_bytes_but_for_timing(run: Run, saved: Callable[..., Path]) -> None:
    trace = saved()
    documents = [json.loads(run("cache", "curve", trace, "--json")[1]) for _ in range(2)]
    for document in documents:
        del document["timing"]
    assert documents[0] == documents[1]


def test_a_damaged_trace_fails_validation_with_3(run: Run, saved: Callable[..., Path]) -> None:
    trace = saved()
    segment = trace / "segments" / "000000.arrows"
    data = bytearray(segment.read_bytes())
    data[-200] ^= 1
    segment.write_bytes(data)
    code, out, _ = run("validate", trace)
    assert code == 3
    assert "segments/000000.arrows: content differs from its checksum" in " ".join(out.split())


def test_what_is_missing_goes_to_stderr_and_quiet_hides_it(
    run: Run, saved: Callable[..., Path]
) -> None:
    trace = saved()
    segment = trace / "segments" / "000000.arrows"
    copy = segment.read_bytes()
    (trace / "segments" / "000001.arrows").write_bytes(copy[: len(copy) // 2])
    assert "segments/000001.arrows: a prefix of" in run("analyze", "load", trace)[2]
    assert run("analyze", "load", trace, "--quiet")[2] == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["frobnicate"], "no command 'frobnicate'; see moeprof --help"),
        (["hardware", "lis"], "did you mean 'hardware list'?"),
        (["info", "nowhere.moetrace"], "nowhere.moetrace: no such trace"),
        (["models", "show", "minimax-m4"], "minimax-m3"),
        (["hardware", "show", "8xh2000"], "h200"),
        (["cache", "T"], "no cache size"),
        (["cache", "T", "--slots", "0"], "1 to"),
        (["cache", "T", "--slots", "4", "--policy", "mru"], "policy 'mru' is not one of"),
        (["cache", "T", "--slots", "4", "--contract", "vague"], "contract 'vague' is not one of"),
        (["cache", "T", "--slots", "4", "--contract", "atomic,sequential"], "do not compare"),
        (["cache", "T", "--fraction", "1.5"], "fraction 1.5"),
        (["cache", "T", "--fraction", "half"], "--fraction 'half'"),
        (["cache", "T", "--slots", "4", "--fit", "1"], "fit 1"),
        (["cache", "T", "--slots", "4", "--budget", "1GiB"], "not two of them"),
        (["cache", "T", "--slots", "4", "--max-num-seqs", "0"], "max_num_seqs 0"),
        (["cache", "T", "--budget", "10"], "budget of 10 bytes"),
        (["cache", "prefetch", "T"], "no cache size"),
        (["cache", "prefetch", "T", "--slots", "4", "--predictor", "x"], "predictor 'x' is not"),
        (["cache", "curve", "T", "--scope", "quota"], "not quota"),
        (["cache", "curve", "T", "--phase", "both"], "phase 'both' is not one of"),
        (["cache", "curve", "T", "--precision", "int3"], "int3"),
        (["analyze", "load", "T", "--gpus", "5"], "do not divide"),
        (["project", "minimax-m3", "--hardware", "8xh200", "--tp", "7"], "tp 7 does not divide"),
        (["project", "minimax-m3", "--hardware", "8xh200", "--input-len", "-1"], "input_len"),
        (["capture", "transformers", "nowhere", "--prompts", "p.txt", "-o", "t"], "p.txt"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_bad_input_is_one_line_and_2(
    run: Run, saved: Callable[..., Path], arguments: list[str], message: str
) -> None:
    trace = str(saved())
    code, out, err = run(*(trace if word == "T" else word for word in arguments), "--quiet")
    assert (code, out) == (2, "")
    assert message in err
    assert err.startswith("moeprof: ")
    assert err.count("\n") == 1


@pytest.mark.parametrize("arguments", [["info"], ["info", "a", "b"], ["info", "a", "--nonsense"]])
def test_wrong_usage_is_2(run: Run, arguments: list[str]) -> None:
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert "Usage: moeprof info" in err


def test_ctrl_c_is_130(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(path: Path, quiet: bool) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(info, "open_noted", interrupted)
    code, out, err = run("info", "T")
    assert (code, out, err) == (130, "", "moeprof: interrupted\n")


def test_help_names_every_command(run: Run) -> None:
    code, out, _ = run("--help")
    assert code == 0
    assert all(verb in out for verb in COMMANDS)
    assert run()[1] == out
    assert run("hardware", "--help")[1] == overview("hardware") + "\n"
    assert run("--version")[1].startswith("moeprof 0.")


@pytest.mark.parametrize("verb", COMMANDS)
def test_each_command_explains_itself(run: Run, verb: str) -> None:
    code, out, _ = run(*verb.split(), "--help")
    assert code == 0
    assert f"Usage: moeprof {verb}" in out
    assert "--json" in out
    assert "--quiet" in out


def test_a_report_is_written_and_not_overwritten(
    run: Run, saved: Callable[..., Path], tmp_path: Path
) -> None:
    trace, page = saved(), tmp_path / "page.html"
    code, out, _ = run("report", trace, "-o", page, "--png", tmp_path / "png", "--json")
    assert code == 0
    assert result(out, "report")["bytes"] == page.stat().st_size
    assert page.read_text().startswith("<!doctype html>")
    code, _, err = run("report", trace, "-o", page)
    assert code == 2
    assert "will not be overwritten without --force" in err
    assert run("report", trace, "-o", page, "--force")[0] == 0


def test_affinity_answers_by_name(run: Run, saved: Callable[..., Path]) -> None:
    path = saved()
    shown = result(run("analyze", "affinity", path, "--json")[1], "analyze.affinity")
    assert 0 <= shown["modularity"] <= 1 and 0 <= shown["next_layer_top1"] <= 1
    assert {layer["layer"] for layer in shown["per_layer"]} == {1, 2, 3}
    assert [(move["layer"], move["next_layer"]) for move in shown["transitions"]] == [
        (1, 2),
        (2, 3),
    ]
    code, out, _ = run("analyze", "affinity", path, "--phase", "decode")
    assert (code, "decode tokens" in out, f"moeprof place {path}" in out) == (0, True, True)
    code, _, err = run("analyze", "affinity", path, "--phase", "sideways")
    assert (code, "sideways" in err) == (2, True)
