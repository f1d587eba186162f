"""What one rank holds: weights, draft, keys and values, and what an engine keeps for itself."""

from moeprof.projection.memory.drafts import Draft, draft_names, load_draft
from moeprof.projection.memory.engines import EngineMemory, engine_memory, engine_names
from moeprof.projection.memory.ledger import MemoryLedger, StageMemory
from moeprof.projection.memory.project import project_memory
from moeprof.projection.memory.stages import stage_models
from moeprof.projection.memory.weights import PREDICTION

__all__ = [
    "PREDICTION",
    "Draft",
    "EngineMemory",
    "MemoryLedger",
    "StageMemory",
    "draft_names",
    "engine_memory",
    "engine_names",
    "load_draft",
    "project_memory",
    "stage_models",
]
