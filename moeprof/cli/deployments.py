"""The options that several commands take of a deployment, and the laws that they ask."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from moeprof.projection import Laws, calibrate_laws, read_measured, shipped_laws

PrecisionOption = Annotated[
    str, typer.Option(help="Checkpoint: bf16, mxfp8, nvfp4, ... or a weight format.")
]
TpOption = Annotated[int | None, typer.Option(help="Tensor parallel; all GPUs that are left.")]
EpOption = Annotated[int, typer.Option(help="Ways that experts go to ranks whole.")]
ReleaseOption = Annotated[str | None, typer.Option(help="Release of the engine.")]
KvDtypeOption = Annotated[str, typer.Option(help="Format of the KV cache.")]
IndexDtypeOption = Annotated[str, typer.Option(help="Format of the index-key cache.")]
UtilizationOption = Annotated[
    float | None,
    typer.Option("--gpu-memory-utilization", help="Share of the card; the engine's own."),
]
DraftOption = Annotated[str | None, typer.Option(help="Draft model, such as eagle3-gqa.")]
DraftTokensOption = Annotated[int, typer.Option(help="Tokens drafted a step.")]
AcceptanceOption = Annotated[
    float, typer.Option(help="Tokens a step yields, the drafted and accepted ones too.")
]
MtpOption = Annotated[
    bool, typer.Option("--mtp", help="Load the modules for multi-token prediction.")
]
RecordingOption = Annotated[
    Path | None, typer.Option(metavar="T", help="A recording: which experts steps read.")
]
TransferOption = Annotated[
    str | None, typer.Option(help="How a recording of another model is carried over.")
]
CalibrateOption = Annotated[
    Path | None, typer.Option(metavar="FILE", help="CSV of 2 to 5 of your own measurements.")
]


def laws_of(calibrate: Path | None) -> Laws:
    """The laws that ship, or those calibrated to a file of the user's measurements."""
    laws = shipped_laws()
    return laws if calibrate is None else calibrate_laws(laws, read_measured(calibrate))
