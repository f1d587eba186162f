"""A trace's tokens through a placement: what every rank gets in every step, and the verdict."""

from moeprof.placement.replay.interval import Interval
from moeprof.placement.replay.judge import (
    PlacementJudgement,
    PlacementJudgements,
    judge_placements,
)
from moeprof.placement.replay.load import RankLoads, RoutedIds, Share, replay_ranks
from moeprof.placement.replay.steps import batched_steps, judged_requests, recorded_steps

__all__ = [
    "Interval",
    "PlacementJudgement",
    "PlacementJudgements",
    "RankLoads",
    "RoutedIds",
    "Share",
    "batched_steps",
    "judge_placements",
    "judged_requests",
    "recorded_steps",
    "replay_ranks",
]
