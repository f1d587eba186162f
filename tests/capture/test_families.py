"""Every family of transformers is recorded as its routers chose, or refused with one sentence."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="needs the extra 'capture'")
pytest.importorskip("transformers", reason="needs the extra 'capture'")

from moeprof.capture import record

from .families import NOT_RECORDED, outcomes, outcomes_with
from .router_classes import RouterClass, families_with_experts, is_used, router_classes
from .tiny_models import EXPERTS, model_classes, tiny_model

ROUTERS = router_classes()
FAMILIES = sorted({router.family for router in ROUTERS})

# Models that are refused, and part of the sentence that says why.
REFUSED = {
    "DiffusionGemmaForBlockDiffusion": "several towers",
    "DogeForCausalLM": "has no router that can be recorded",
    "LongcatFlashForCausalLM": "experts that compute nothing",
    "NllbMoeForConditionalGeneration": "encoder-decoder",
    "Qwen3OmniMoeForConditionalGeneration": "several towers",
    "Qwen3OmniMoeTalkerForConditionalGeneration": "model_type is missing",
    "SwitchTransformersForConditionalGeneration": "encoder-decoder",
    "ZayaForCausalLM": "expert 0 where a token skips",
}
# Routers of which nothing is recorded though a model of theirs may be, and why.
LEFT_OUT = {
    "Dots3NoteVisionTopKRouter": "it routes patches of images",
    "Qwen3OmniMoeTextTopKRouter": "no model has it",
}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    import torch

    torch.set_num_threads(1)


def test_every_family_with_experts_has_a_router_that_was_found() -> None:
    assert families_with_experts() <= set(FAMILIES)


@pytest.mark.parametrize("family", FAMILIES)
def test_models_are_recorded_as_their_routers_chose_or_refused(family: str) -> None:
    found = outcomes(family)  # compares
    assert found
    for outcome in found:
        assert bool(outcome.refusal) == (outcome.model in REFUSED), outcome.refusal
        assert REFUSED.get(outcome.model, "") in outcome.refusal
        assert "\n" not in outcome.refusal


@pytest.mark.parametrize("router", ROUTERS, ids=lambda router: router.name)
def test_no_router_is_passed_over_silently(router: RouterClass) -> None:
    found = outcomes_with(router)
    if router.name in LEFT_OUT:
        assert not any(router.name in outcome.compared for outcome in found)
        assert bool(found) == is_used(router)
    elif not all(outcome.model in REFUSED for outcome in found):
        assert any(router.name in outcome.compared for outcome in found)
    else:
        assert found
