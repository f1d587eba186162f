"""What a comparison of two traces says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from moeprof.analysis.uncertainty import Interval
from moeprof.result import Result


@dataclass(frozen=True)
class Side(Result):
    """One of the two that are compared."""

    name: str
    model: str
    tokens: int
    requests: int
    layers: int
    experts: int
    top_k: int


@dataclass(frozen=True)
class Difference(Result):
    """One figure of A and of B. None: not known, of a single request say."""

    metric: str
    a: float
    b: float
    effect: float  # b - a
    relative: float | None  # effect over a
    low: float | None  # 95 % interval of the effect
    high: float | None
    p: float | None  # of an effect as large if A and B were of one kind
    q: float | None  # p among all that were tested with it
    significant: bool  # q <= 0.05 and the interval leaves out 0
    layer: int | None = None  # native, of A; None: mean over layers


@dataclass(frozen=True)
class LayerDivergence(Result):
    """How far the experts of one layer are apart, and by chance."""

    layer: int
    value: float
    null: float
    q: float | None
    significant: bool


@dataclass(frozen=True)
class Divergence(Result):
    """Jensen-Shannon divergence in bits between A's and B's expert distributions, 0 to 1."""

    value: float  # mean over layers
    null: float  # the same where requests were dealt to A and B at random; 0 if not tested
    p: float | None
    significant: bool
    per_layer: list[LayerDivergence]


@dataclass(frozen=True)
class LayerAgreement(Result):
    """Agreement of one layer."""

    layer: int
    agreement: float
    chance: float


@dataclass(frozen=True)
class Agreement(Result):
    """How far A and B route the same tokens alike, as shares from 0 to 1.

    `agreement` is what OLMoE calls router saturation where A is an earlier checkpoint of B: the
    mean of |A_t and B_t| / k over tokens and layers (arXiv 2409.02060, section 5.1).
    """

    agreement: float
    interval: Interval | None
    exact: float  # tokens with all experts the same
    first: float | None  # tokens with the same first choice; None: order of choice not recorded
    chance: Mapping[str, float]  # the same three with B's tokens shuffled
    tokens: int
    known_by: str  # how the tokens are known to be the same
    per_layer: list[LayerAgreement]


@dataclass(frozen=True)
class LayerAlignment(Result):
    """The expert of B that stands for each expert of A, in one layer."""

    layer: int
    experts_of_b: list[int]
    matched: float
    moved: int  # experts with another id in B


@dataclass(frozen=True)
class Alignment(Result):
    """Experts of A matched to experts of B, fitted on half of the requests, judged on the rest.

    Shares from 0 to 1, means over layers: of the experts of a token that both choose, where they
    were matched by tokens, else of the load of a label that falls on matched experts.
    """

    by: str  # what experts were matched by
    as_they_are: float  # ids taken as they stand
    fitted: float  # on the requests that the matching was fitted to: what it would claim
    matched: float  # on the other requests
    null: float  # the same with a matching fitted to shuffled tokens or labels
    moved: float  # share of experts with another id in B
    per_layer: list[LayerAlignment]


@dataclass(frozen=True)
class TraceComparison(Result):
    """How B differs from A."""

    a: Side
    b: Side
    paired: bool  # the same requests in both
    differences: list[Difference]
    divergence: Divergence | None
    agreement: Agreement | None
    alignment: Alignment | None  # where it was asked for
    not_compared: list[str]  # in sentences
    permutations: int
    resamples: int
    seed: int
    failed: list[str] = field(default_factory=list)  # conditions to fail on that hold
