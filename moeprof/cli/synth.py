"""Seeded synthetic routing for MODEL, by targets or like a recording; same seed, same bytes.

The defaults are made up, not those of any model. With --like, requests are those of the recording
over and over, popularities nearly those of each, locality and ties between layers are fitted, and
the differences are printed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from moeprof.cli.answer import Answer, ForceFlag, JsonFlag, QuietFlag, files_of
from moeprof.cli.progress import Progress
from moeprof.cli.traces import open_and_warn
from moeprof.errors import InputError
from moeprof.report.text.synth import synth_text
from moeprof.synth import RoutingTargets, Shape, SynthResult, Traffic, read_load, synthesize_trace


def run(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Preset, config.json or folder.")],
    tokens: Annotated[int, typer.Option(help="Tokens to make.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The trace to write.")],
    like: Annotated[Path | None, typer.Option(help="A recording of this model to be like.")] = None,
    imbalance: Annotated[
        str,
        typer.Option(help="Load of the busiest expert over the mean; or one a layer: 2,1.5,..."),
    ] = "1.5",
    shape: Annotated[
        Shape, typer.Option(help="How popularity falls from expert to expert.")
    ] = Shape.LOGNORMAL,
    load: Annotated[
        Path | None, typer.Option(help="Measured loads instead: .npy of [layers, experts] counts.")
    ] = None,
    repeat: Annotated[
        str,
        typer.Option(
            help="Share of a token's experts that the token before used; for tokens 1, 2, 4, 8, "
            "... apart: 0.4,0.3,0.25; 'none' for what popularity makes of it."
        ),
    ] = "0.3",
    decay: Annotated[
        float, typer.Option(help="Pull of an earlier use: (1 + tokens since)^-DECAY.")
    ] = 1.5,
    coupling: Annotated[
        float, typer.Option(help="Share of choices that are made alike in all layers.")
    ] = 0.2,
    domains: Annotated[int, typer.Option(help="Labels with popularities of their own.")] = 1,
    domain_spread: Annotated[
        float, typer.Option(help="Sigma of the log-normal factors that tell domains apart.")
    ] = 0.5,
    request_spread: Annotated[
        float, typer.Option(help="The same for the requests of a domain.")
    ] = 0.3,
    prompt_tokens: Annotated[float, typer.Option(help="Mean length of a prompt.")] = 512,
    output_tokens: Annotated[float, typer.Option(help="Mean length of an answer.")] = 256,
    length_spread: Annotated[
        float, typer.Option(help="Sigma of the logarithm of both lengths.")
    ] = 0.5,
    concurrency: Annotated[int, typer.Option(help="Requests that run together.")] = 1,
    seed: Annotated[int, typer.Option(help="Same seed, same bytes.")] = 0,
    force: ForceFlag = False,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> Answer[SynthResult]:
    """Run the command."""
    targets = traffic = original = None
    if like is None:
        lags = [] if repeat == "none" else _numbers("repeat", repeat)
        targets = RoutingTargets(
            imbalance=_numbers("imbalance", imbalance),
            shape=shape,
            load=None if load is None else read_load(load),
            repeat=lags[0] if lags else None,
            lag_profile=lags if len(lags) > 1 else (),
            decay=decay,
            coupling=coupling,
            domains=domains,
            domain_spread=domain_spread,
            request_spread=request_spread,
        )
        traffic = Traffic(prompt_tokens, output_tokens, length_spread, concurrency)
    else:
        original = open_and_warn(like, quiet)
    with Progress(quiet=quiet).stage(f"synthesize {tokens:,} tokens"):
        result = synthesize_trace(
            model,
            output,
            tokens=tokens,
            seed=seed,
            targets=targets,
            traffic=traffic,
            like=original,
            force=force,
        )
    inputs = [*files_of(model), *(path for path in (like, load) if path is not None)]
    return Answer(result, synth_text, json, inputs=inputs)


def _numbers(name: str, text: str) -> list[float]:
    """'2,1.5' as numbers. Raises InputError."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"--{name} {text}: numbers are needed, like 0.3 or 0.4,0.3") from None
