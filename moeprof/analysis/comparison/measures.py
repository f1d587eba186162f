"""What `--fail-on` may ask of a comparison, by name."""

from __future__ import annotations

from moeprof.analysis.comparison.checkpoints import SaturationResult
from moeprof.analysis.comparison.conditions import Measure
from moeprof.analysis.comparison.documents import DocumentComparison
from moeprof.analysis.comparison.results import Difference, TraceComparison


def measures_of(
    comparison: TraceComparison | DocumentComparison | SaturationResult,
) -> dict[str, list[Measure]]:
    """The figures of `comparison` that a condition may name; by layer several of one name."""
    if isinstance(comparison, SaturationResult):
        shares = [checkpoint.saturation for checkpoint in comparison.checkpoints]
        return {"saturation": [Measure(share, 1.0, False) for share in shares]}
    measures = _of_differences(comparison.differences)
    if isinstance(comparison, TraceComparison):
        measures |= _of_both(comparison)
    return measures


def _of_differences(differences: list[Difference]) -> dict[str, list[Measure]]:
    measures: dict[str, list[Measure]] = {}
    for found in differences:
        measure = Measure(found.effect, found.a, found.significant)
        measures.setdefault(found.metric, []).append(measure)
    return measures


def _of_both(comparison: TraceComparison) -> dict[str, list[Measure]]:
    """Figures that are of A and B together, not differences: shares, and bits of at most 1."""
    measures = {}
    if comparison.divergence:
        apart = comparison.divergence
        measures["divergence"] = [Measure(apart.value, 1.0, apart.significant)]
    if comparison.agreement:
        agreement = comparison.agreement
        measures["agreement"] = [Measure(agreement.agreement, 1.0, False)]
        measures["exact"] = [Measure(agreement.exact, 1.0, False)]
    return measures
