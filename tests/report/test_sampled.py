"""A recording of some requests is never shown as if it were one of all."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from moeprof.analysis import analyze_load, sampling_error
from moeprof.cli.main import main
from moeprof.model import MoEModel
from moeprof.report import ReportContents, gather_report
from moeprof.report.blocks import Table
from moeprof.report.findings import find_all
from moeprof.report.html import render_html
from moeprof.report.sections.load import load_section
from moeprof.report.sections.origin import origin_section
from moeprof.report.text.findings import findings_text
from moeprof.report.text.load import load_text
from moeprof.report.text.trace import trace_info_text
from moeprof.report.wording import percent
from moeprof.trace import Trace, TraceWriter, open_trace, synthesize_rows, write_counts
from moeprof.trace.schema import Sampling

KEPT, LEFT_OUT = 40, 120


@pytest.fixture
def sampled(model: MoEModel) -> Trace:
    """40 of 160 requests."""
    trace = Trace.in_memory(model, *synthesize_rows(model, 4000, requests=KEPT))
    trace.manifest.sampling = Sampling(rate=0.25, seed=7)
    trace.manifest.requests_sampled_out = LEFT_OUT
    trace.manifest.tokens_sampled_out = 12_000
    return trace


@pytest.fixture
def page(sampled: Trace) -> ReportContents:
    return gather_report(sampled)


def words(text: str) -> str:
    return " ".join(text.replace("\u00a0", " ").split())


def facts(contents: ReportContents) -> dict[object, object]:
    table = origin_section(contents).blocks[0]
    assert isinstance(table, Table)
    return {name: value for name, value in table.rows}


def test_the_finding_states_what_was_kept_and_the_error(
    page: ReportContents, sampled: Trace
) -> None:
    error = sampling_error(sampled)
    assert page.sampling is not None
    assert page.sampling.mean_share_error == error.mean_share_error > 0
    [finding] = [f for f in find_all(page) if "sampled" in f.headline]
    assert finding.tone == "notice"
    assert "40 of 160 requests (each kept with probability 0.25, seed 7)" in finding.headline
    assert "12,000 tokens left out" in finding.headline
    assert f"share is {percent(error.mean_share_error)} of it on average" in finding.meaning
    assert f"{percent(error.max_share_error)} at most" in finding.meaning
    assert "stand for 16,000, give or take" in finding.meaning


def test_it_stands_before_any_share(page: ReportContents) -> None:
    headlines = [finding.headline for finding in find_all(page)]
    assert headlines[0].startswith("Requests were sampled")
    assert "(standard error " in next(h for h in headlines if "busiest expert" in h)


def test_header_provenance_and_table_say_so(page: ReportContents) -> None:
    html = words(render_html(page))
    header = html[html.index("<header>") : html.index("</header>")]
    assert "40 of 160 requests (each kept with probability 0.25" in header
    assert page.load
    assert page.sampling
    assert "The standard error of an expert's share is" in str(facts(page)["sampling"])
    table = load_section(page).blocks[-1]
    assert isinstance(table, Table)
    busiest = int(page.load.load[0].argmax())
    assert f" ± {percent(page.sampling.share_error[0, busiest])}" in str(table.rows[0][3])
    assert " ± " in str(table.rows[0][4])


def test_a_whole_recording_has_no_error_to_state(contents: ReportContents) -> None:
    assert contents.sampling is None
    html = words(render_html(contents))
    assert "sampled" not in findings_text(find_all(contents))
    assert " ± " not in html
    assert "standard error" not in html


def test_few_requests_are_said_to_be_few(model: MoEModel) -> None:
    trace = Trace.in_memory(model, *synthesize_rows(model, 300, requests=5))
    trace.manifest.sampling = Sampling(rate=0.1, seed=0)
    [finding] = [f for f in find_all(gather_report(trace)) if "sampled" in f.headline]
    assert "From 5 requests the error itself is a rough guess" in finding.meaning


def test_counts_of_a_sample_have_an_unknown_error(tmp_path: Path, model: MoEModel) -> None:
    write_counts(tmp_path / "counts.moetrace", model, np.full((2, 3, 16), 9))
    trace = open_trace(tmp_path / "counts.moetrace")
    trace.manifest.sampling = Sampling(rate=0.1, seed=0)
    contents = gather_report(trace)
    assert contents.sampling is None
    assert "is not known" in findings_text(find_all(contents)).replace("\n    ", " ")


def test_the_terminal_says_so(sampled: Trace, page: ReportContents) -> None:
    said = words(load_text(analyze_load(sampled), sampling_error(sampled)))
    assert "Requests were sampled. The standard error of an expert's share is" in said
    assert "sampled" not in load_text(analyze_load(sampled))
    assert "40 of 160 requests (each kept with" in words(trace_info_text(page.info))
    assert page.info.sampling
    info = replace(page.info, sampling={**page.info.sampling, "share_error": 0.059})
    assert "an expert's load is known to 5.9" in words(trace_info_text(info))


def test_commands_warn_of_a_sample(
    tmp_path: Path, model: MoEModel, capsys: pytest.CaptureFixture[str]
) -> None:
    rows, requests = synthesize_rows(model, 600, requests=6)
    with TraceWriter(
        tmp_path / "t.moetrace", model, clock_base=0.0, sampling={"rate": 0.5, "seed": 3}
    ) as writer:
        writer.write(rows)
        for request in requests:
            writer.put_request(request)
    for command, flags in ((["analyze", "load"], []), (["cache", "curve"], ["--json"])):
        assert main([*command, str(tmp_path / "t.moetrace"), *flags]) == 0
        assert "each kept with probability 0.5, seed 3" in capsys.readouterr().err
    main(["analyze", "load", str(tmp_path / "t.moetrace"), "--quiet"])
    printed = capsys.readouterr()
    assert printed.err == ""
    assert "Requests were sampled." in printed.out


def test_counts_of_a_sample_are_loaded_all_the_same(
    tmp_path: Path, model: MoEModel, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "counts.moetrace"
    write_counts(path, model, np.full((2, 3, 16), 9))
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["sampling"] = {"rate": 0.5, "seed": 3}
    (path / "manifest.json").write_text(json.dumps(manifest))
    assert main(["analyze", "load", str(path)]) == 0
    assert "each kept with probability 0.5" in capsys.readouterr().err


def test_what_rotation_let_go_is_said(contents: ReportContents) -> None:
    info = replace(contents.info, rotated_tokens=5_400)
    rotated = replace(contents, info=info)
    [finding] = [f for f in find_all(rotated) if "newest" in f.headline]
    assert "the newest 600 tokens of 6,000 recorded" in finding.headline
    html = words(render_html(rotated))
    assert "5,400 older tokens let go to make room" in html[: html.index("</header>")]
    assert facts(rotated)["rotation"] == "5,400 older tokens let go to make room"


def test_sampled_text_fits_80_columns(page: ReportContents, sampled: Trace) -> None:
    load = load_text(analyze_load(sampled), sampling_error(sampled))
    for text in (findings_text(find_all(page)), load):
        assert max(map(len, text.splitlines())) <= 80
