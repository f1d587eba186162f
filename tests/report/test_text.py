"""Terminal text: 80 columns, aligned, and no control characters from labels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from moeprof.cache import lru_curve
from moeprof.hardware import list_hardware, load_hardware
from moeprof.model import describe_model, list_models, load_model
from moeprof.projection import project_deployment, project_memory
from moeprof.report import ReportContents, ReportFile
from moeprof.report.blocks import axis_ticks
from moeprof.report.findings import find_all
from moeprof.report.text.curve import curve_text
from moeprof.report.text.findings import findings_text
from moeprof.report.text.hardware import hardware_list_text, hardware_text
from moeprof.report.text.layout import table
from moeprof.report.text.load import load_text
from moeprof.report.text.memory import ledger_text, projection_text
from moeprof.report.text.model import model_text, models_text
from moeprof.report.text.report import report_text
from moeprof.report.text.trace import trace_info_text
from moeprof.trace import Trace, describe_trace

TABLES = ("load", "layer", "ledger", "projection")  # end in a bar, or in the room for one


def texts(contents: ReportContents) -> dict[str, str]:
    assert contents.load and contents.layer_curve and contents.global_curve
    return {
        "info": trace_info_text(contents.info),
        "load": load_text(contents.load),
        "layer": curve_text(contents.layer_curve),
        "global": curve_text(contents.global_curve, contents.expert_bytes),
        "findings": findings_text(find_all(contents)),
        "ledger": ledger_text(contents.deployments[0].ledger),
        "projection": projection_text(
            project_deployment("minimax-m3", "8xh200", concurrency=8, input_len=9_000)
        ),
        "model": model_text(describe_model("minimax-m3", tp=8)),
        "models": models_text(list_models()),
        "hardware": hardware_text(load_hardware("8xh200")),
        "profiles": hardware_list_text(list_hardware()),
        "report": report_text(ReportFile("report.html", 123_456, ["a.png"])),
    }


@pytest.mark.parametrize("which", ["contents", "hostile"])
def test_fits_80_columns_and_is_plain(which: str, request: pytest.FixtureRequest) -> None:
    for name, text in texts(request.getfixturevalue(which)).items():
        for line in text.splitlines():
            assert len(line) <= 80, (name, line)
            assert line.isprintable(), (name, line)
            assert line == line.rstrip() or name in TABLES, (name, line)


def test_load_has_a_row_a_layer(contents: ReportContents) -> None:
    assert contents.load
    text = load_text(contents.load)
    for layer in contents.load.per_layer:
        assert f"{layer.imbalance:.2f}×  " in text  # noqa: RUF001
    assert f"{contents.load.mean_imbalance:.2f}×" in text  # noqa: RUF001


def test_curve_marks_the_token_cycle_and_puts_no_number_on_it(trace: Trace) -> None:
    text = curve_text(lru_curve(trace, scope="global"))
    [line] = [line for line in text.splitlines() if line.strip().startswith("> 9")]
    assert line.split()[4:] == ["cliff"] * 3
    assert curve_text(lru_curve(trace, scope="layer")).count("cliff") == 0


def test_curve_takes_sizes_and_leaves_out_what_it_does_not_have(trace: Trace) -> None:
    text = curve_text(lru_curve(trace), {"bf16": 1000}, slots=[2, 16, 17, 0])
    rows = [line.split()[0] for line in text.splitlines() if line[:8].strip().isdigit()]
    assert rows == ["2", "16"]


def test_m3_figures_are_exact() -> None:
    text = model_text(describe_model("minimax-m3", tp=8))
    for number in ("427,040,140,160", "113,246,208", "45,312 bytes a token", "228 experts"):
        assert number in text


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("deepseek-v3", "one latent vector of 576 numbers"),
        ("deepseek-v3", "every rank holds it whole"),
        ("deepseek-v3", "Not counted above: 13,463,426,304 parameters"),
        ("glm-5", "index key in bf16"),
        ("gpt-oss-120b", "18 of them forget it after 128"),
        ("qwen3.5-397b-a17b", "22.9 MiB of state a running sequence, in the 45 layers"),
    ],
)
def test_a_model_says_what_its_cache_keeps(name: str, said: str) -> None:
    text = model_text(describe_model(name, tp=8))
    assert max(map(len, text.splitlines())) <= 80
    assert said in " ".join(text.split())


def test_a_model_on_one_gpu_has_no_ranks() -> None:
    text = " ".join(model_text(describe_model("llama-3.1-70b")).split())
    assert "Cache: 327,680 bytes a token on one GPU, KV in bf16." in text


def test_ledger_says_whether_it_fits(contents: ReportContents) -> None:
    model = contents.recorded
    assert "Fits" in ledger_text(project_memory(model, load_hardware("h200")))
    large = project_memory(load_model("minimax-m3"), load_hardware("h200"))
    assert "Does not fit: " in ledger_text(large)


@pytest.mark.parametrize(
    ("hardware", "options", "said"),
    [
        ("4xh200", {"precision": "nvfp4", "pp": 4}, "Stages of 15, 15, 15, 15 layers; the fullest"),
        ("2xb200", {"precision": "nvfp4", "tp": 2, "tokens": 500_000}, "Tight: where the engine"),
        ("8xh200", {"precision": "mxfp8", "tp": 8}, "Fits, "),
        (
            "rtx-pro-6000",
            {"precision": "mxfp4", "cache_slots": 8, "ram_bytes": 256 * 10**9},
            "Host memory of each node holds 192 GiB of experts and has 238 GiB.",
        ),
        (
            "rtx-pro-6000",
            {"precision": "mxfp4", "cache_slots": 8, "ram_bytes": 192 * 10**9},
            "Does not fit: 12.8 GiB short in the host memory of every node.",
        ),
        ("8xh200", {"precision": "nvfp4", "tp": 8, "draft": "eagle3"}, "about 3.3 B parameters"),
    ],
)
def test_ledger_says_where_things_stand(hardware: str, options: dict[str, Any], said: str) -> None:
    text = ledger_text(project_memory(load_model("minimax-m3"), hardware, **options))
    assert max(map(len, text.splitlines())) <= 80
    assert said in " ".join(text.split())


def test_a_projection_bounds_only_what_fits() -> None:
    asked = {"concurrency": 2, "input_len": 1000, "output_len": 24}
    fits = projection_text(project_deployment("minimax-m3", "8xh200", **asked))
    assert "2 requests of 1,024 tokens; 563 fit at a time." in fits
    assert "bounded by 775 tokens/s" in fits
    assert "bounded" not in projection_text(project_deployment("minimax-m3", "h200"))


def test_info_of_counts(counts_only: Trace) -> None:
    assert "counts only" in trace_info_text(describe_trace(counts_only))


def test_the_curve_says_up_to_where_nothing_is_hit(trace: Trace) -> None:
    assert "Up to 6 slots a cache for all layers never" in curve_text(
        lru_curve(trace, scope="global")
    )


@pytest.mark.parametrize("function", [axis_ticks, table])
def test_docstrings_have_no_stray_quotes(function: Callable[..., object]) -> None:
    assert function.__doc__ and '"' not in function.__doc__
