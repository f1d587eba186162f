"""The main job from end to end: record a real model, analyse, replay, project, report.

The model is tiny-m3, a small trained model of MiniMax-M3's architecture that ships with this
package (traces/make tells how it was made). It is not MiniMax-M3: its routing says how to read a
recording, not how M3 routes. The memory figures are of the full M3 and need no recording.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from moeprof.capture.transformers.run import capture_transformers
from moeprof.errors import InputError
from moeprof.model import MoEModel
from moeprof.report import Finding, find_all, gather_report, write_report
from moeprof.result import Result
from moeprof.trace import open_trace

MODEL = Path(__file__).parent / "tiny_m3"
PROMPTS = MODEL / "prompts.jsonl"
TARGET = "minimax-m3"
HARDWARE = "8xh200"
NEW_TOKENS = 64
BATCH = 8

Stage = Callable[[str], AbstractContextManager[Callable[[int, int], None]]]


@dataclass(frozen=True)
class DemoResult(Result):
    """Where the demo's files are, and what it found."""

    trace: str
    report: str
    figures: list[str]
    tokens: int
    prefill_tokens: int
    decode_tokens: int
    dropped: int
    requests: int
    findings: list[Finding]


def run_demo(output: str | Path, *, stage: Stage, force: bool = False, seed: int = 0) -> DemoResult:
    """Record tiny-m3 on its prompts into `output` and explain the recording.

    `stage(title)` is entered around each step and yields a function (done, of) that shows its
    progress. Raises InputError if `output` holds a demo already and `force` is false, and
    MissingExtraError without torch and transformers.
    """
    folder = Path(output)
    trace_path, report_path = folder / "tiny-m3.moetrace", folder / "report.html"
    if not force and (trace_path.exists() or report_path.exists()):
        raise InputError(f"{folder} holds a demo, it will not be overwritten without --force")
    with stage("record tiny-m3, a small trained model of M3's architecture") as progress:
        captured = capture_transformers(
            MODEL,
            PROMPTS,
            trace_path,
            batch_size=BATCH,
            max_new_tokens=NEW_TOKENS,
            dtype="float32",
            threads=1,  # its matrices are too small to share: two threads take longer than one
            sample=True,
            seed=seed,
            force=force,
            progress=progress,
        )
    with stage("analyse the routing, replay the caches, project full MiniMax-M3"):
        target = MoEModel.preset(TARGET)
        contents = gather_report(
            open_trace(trace_path), hardware=HARDWARE, target=target, command="moeprof demo"
        )
    with stage("write the report"):
        written = write_report(contents, report_path, png_dir=folder / "figures", force=force)
    return DemoResult(
        trace=str(trace_path),
        report=str(report_path),
        figures=[str(path) for path in written.figures],
        tokens=captured.tokens,
        prefill_tokens=captured.prefill_tokens,
        decode_tokens=captured.decode_tokens,
        dropped=captured.dropped,
        requests=captured.requests,
        findings=find_all(contents),
    )
