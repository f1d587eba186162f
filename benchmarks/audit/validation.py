"""The section on offload of docs/validation.md."""

from __future__ import annotations

from .fit import constants_factor, hold_out
from .ktransformers import curve_page, explanation, measured_page
from .pages import by_row, by_source, constants_by_fold, summary
from .points import points_page
from .residency import IMPUTED_SHARE, LRU_LOCALITY, POPULARITY
from .runs import load_runs

SECTION = """## Offload: decode at batch 1

58 published speeds with experts partly in host memory, audited by the authors of
moe-speed-of-light, and 150 speeds of other engines that the same sources measured beside them;
where they come from stands in `benchmarks/data/README.md`. Much of what the law needs is not in
the sources: host memory of {hosts} rows is a band, the memory for experts of {imputed} is only
bounded, hits are nowhere, and most speeds are read off figures. The authors state 2.9 % median on
33 configurations that they ran themselves, with recorded routing: that is not the same test.

What is held out are the constants and the bands. How each engine serves a miss, which engines
launch alike and the laws of hits were read from the sources with all rows in view.

### What is fitted

Five constants, shared by all: which fraction of STREAM bandwidth experts on the CPU reach, what a
layer's launches cost from a CUDA graph, from compiled code and from Python, and what handing a
layer to the CPU costs. They stand in `moeprof/offload/rates.toml` with the rest, which the audit
takes as it is; a test refits them. Their band there is x/ {factor}: with it the law's two ends (all
rates slow, all fast) hold 80 % of the held-out rows whose budget is stated.

{folds}

A limit by CPU cores was tried and left out: sources held out did not gain by it. Fitting the link's
efficiency was left out too: the rows do not tell .95 from 1.

### How hits were come by

No row counts hits, so each uses a law of the share f of experts resident
(`benchmarks/audit/residency.py`). LRU caches miss (1 - f) (k/E)^(s f), with s = {lru.value}
({lru.low} to {lru.high}), fitted to recordings of four models and three published figures; lists
of popular experts the same with s = {popular.value} ({popular.low} to {popular.high}); engines that
place tensors or layers hit a share f. A cache of fewer slots than one token needs hits f. An
imputed budget (*) is taken as {imputed_share.value} of the card, between {imputed_share.low} and
all of it. These bands go into each row's own.

### Errors, each source predicted by the others

A row's band comes from the other sources too: it is the width that holds 80 % of their rows, each
predicted by constants fitted without it, in proportion to what the row's inputs leave open.

{summary}

{sources}

Where it fails: MoE-SpeQ's two settings are one bound to us; Fate keeps far less than its cards
would hold; HybriMoE's llama.cpp slows down as its cache grows, and its ten cores read a tenth of
what its memory could give; unified memory pages at half the speed of a copy; Fiddler's placement
broke down on Phi-3.5; SeqMoE foresees more than an LRU cache keeps.

### Every row

{rows}

### Every baseline

{baselines}

## Offload: KTransformers on Qwen3-Next-80B-A3B-FP8

4 x RTX 4090 (TP4), Xeon 6454S, ShareGPT, the same number of experts a layer on the GPUs.
"Predicted" knows none of the three speeds; then the ends correct the GPUs' part and the CPU's part
of the time by one factor each, and the middle judges.

{kt_measured}

{kt_explained}

The curve between, and what it gains to keep the most frequent experts instead (the popular law, s
from {popular.low} to {popular.high}):

{kt_curve}

## Offload: points outside of the audit

Nothing is fitted to these. Their hosts are not named, so two channels of DDR5-5600 are taken, and
anything from two channels of DDR4-3200 to eight as the band.

{points}
"""


def offload_section() -> str:
    """Everything above with its figures, computed anew."""
    runs = load_runs()
    own = [run for run in runs if not run.baseline]
    held = hold_out(runs)
    return SECTION.format(
        hosts=sum(run.machine.host.low < run.machine.host.high for run in own),
        imputed=sum(run.budget.imputed for run in own),
        factor=constants_factor(runs),
        folds=constants_by_fold(runs),
        lru=LRU_LOCALITY,
        popular=POPULARITY,
        imputed_share=IMPUTED_SHARE,
        summary=summary(held, runs),
        sources=by_source(held),
        rows=by_row(held, baseline=False),
        baselines=by_row(held, baseline=True),
        kt_measured=measured_page(),
        kt_explained=explanation(),
        kt_curve=curve_page(),
        points=points_page(),
    )
