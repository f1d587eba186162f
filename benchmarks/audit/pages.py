"""The audit in tables of Markdown, which read well in a terminal too."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from math import exp
from statistics import median

import numpy as np

from .fit import HeldOut, fit_constants, predict
from .prediction import Constants
from .runs import Run

# How hits were come by, by what an engine keeps; `residency` states the laws.
_HITS = {"lru": "LRU law", "popular": "popular law", "placed": "share", "none": "no experts"}


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table of Markdown; numbers stand right."""
    lines = [f"| {' | '.join(head)} |"]
    lines.append("|" + "|".join("---" if i == 0 else "---:" for i in range(len(head))) + "|")
    lines += [f"| {' | '.join(str(cell) for cell in row)} |" for row in rows]
    return "\n".join(lines)


def summary(held: Sequence[HeldOut], runs: Sequence[Run]) -> str:
    """Errors of kinds of rows, and of two simpler predictions beside them."""
    kinds: list[tuple[str, Callable[[Run], bool]]] = [
        ("all 58 rows", lambda run: not run.baseline),
        ("budget stated", lambda run: not run.baseline and not run.budget.imputed),
        ("budget imputed", lambda run: not run.baseline and run.budget.imputed),
        ("routing and bytes exact, no speculation", _plain),
        ("speculative or lossy", lambda run: not run.baseline and not _plain(run)),
        ("baselines beside them", lambda run: run.baseline),
    ]
    lines = []
    for name, belongs in kinds:
        some = [row for row in held if belongs(row.seen.run)]
        covered = sum(row.covered for row in some)
        width = median(row.factor for row in some)
        errors = _errors([row.seen.log_error for row in some])
        lines.append(
            (name, len(some), *errors, f"{covered} ({covered / len(some):.0%})", f"x/ {width:.2f}")
        )
    own = [run for run in runs if not run.baseline]
    for name, constants in (
        ("all 58, no constants: peaks alone", Constants(1.0, 0.0, 0.0, 0.0, 0.0)),
        ("all 58, fitted to themselves", fit_constants(own)),
    ):
        errors = _errors([seen.log_error for seen in predict(own, constants)])
        lines.append((name, len(own), *errors, "-", "-"))
    return table(
        ("rows", "count", "median", "mean", "90th percentile", "in the band", "band"), lines
    )


def by_source(held: Sequence[HeldOut]) -> str:
    """The rows of each source, and what its baselines did."""
    lines = []
    for source in dict.fromkeys(row.seen.run.source for row in held):
        for baseline in (False, True):
            some = [
                row
                for row in held
                if row.seen.run.source == source and row.seen.run.baseline == baseline
            ]
            if not some:
                continue
            logs = [row.seen.log_error for row in some]
            lines.append(
                (
                    source if not baseline else "its baselines",
                    len(some),
                    *_errors(logs)[:1],
                    f"{np.exp(np.median(logs)) - 1:+.0%}",
                    f"{sum(row.covered for row in some)}",
                )
            )
    return table(("source", "rows", "median error", "signed", "in the band"), lines)


def by_row(held: Sequence[HeldOut], baseline: bool) -> str:
    """Every row, the bad ones too."""
    lines = []
    for seen, factor in held:
        run, case = seen.run, seen.case
        if run.baseline != baseline:
            continue
        low, high = seen.tok_s / factor, seen.tok_s * factor
        inside = low <= run.tok_s <= high
        name = (run.row, run.name) if baseline else (run.row,)
        lines.append(
            (
                *name,
                _how(run),
                f"{case.resident:.2f}{'*' if run.budget.imputed else ''}",
                f"{case.hit_ratio:.2f}",
                f"{run.tok_s:g}",
                f"{seen.tok_s:.3g}",
                f"{exp(seen.log_error) - 1:+.0%}",
                f"{low:.3g} to {high:.3g}",
                "yes" if inside else "**no**",
            )
        )
    head = ("row", "engine") if baseline else ("row",)
    return table(
        (
            *head,
            "misses, hits by",
            "resident",
            "hit ratio",
            "tok/s",
            "predicted",
            "error",
            "band",
            "in it",
        ),
        lines,
    )


def constants_by_fold(runs: Sequence[Run]) -> str:
    """What each source left out does to the constants."""
    own = [run for run in runs if not run.baseline]
    folds = [("none", own)] + [
        (source, [run for run in own if run.source != source])
        for source in dict.fromkeys(run.source for run in own)
    ]
    lines = [
        (name, f"{c.cpu_efficiency:.2f}", *(f"{second * 1e6:.0f}" for second in c[1:]))
        for name, c in ((name, fit_constants(fold)) for name, fold in folds)
    ]
    return table(
        (
            "left out",
            "cpu_efficiency",
            "layer_s, us",
            "compiled_layer_s, us",
            "eager_layer_s, us",
            "cpu_layer_s, us",
        ),
        lines,
    )


def _how(run: Run) -> str:
    """How misses are served and hits come by, and what else sets a run apart."""
    flags = [name for name in ("speculative", "lossy") if getattr(run, name)]
    return ", ".join((run.engine.serve, _HITS[run.engine.residency], *flags))


def _plain(run: Run) -> bool:
    return not (run.baseline or run.speculative or run.lossy)


def _errors(logs: Sequence[float]) -> tuple[str, str, str]:
    """Median, mean and 90th percentile of relative errors."""
    sizes = np.abs(np.exp(logs) - 1)
    return f"{np.median(sizes):.1%}", f"{sizes.mean():.1%}", f"{np.quantile(sizes, 0.9):.1%}"
