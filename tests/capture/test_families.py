"""Every family of transformers is recorded as its routers chose, or refused with one sentence."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch", reason="needs the extra 'capture'")
pytest.importorskip("transformers", reason="needs the extra 'capture'")

from moeprof.capture import record

from .families import LEFT_OUT, outcomes, outcomes_with
from .router_classes import RouterClass, families_with_experts, is_used, router_classes
from .tiny_models import model_classes, tiny_model

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
    "ZayaForCausalLM": "expert 0 where a token skips all",
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


def test_a_step_with_images_is_dropped_where_each_router_sees_only_some_tokens(
    tmp_path: Path,
) -> None:
    # ERNIE 4.5 VL: in every layer one router for text, one for patches of images.
    import torch

    (kind, *_) = (k for k in model_classes("ernie4_5_vl_moe") if k.__name__.endswith("Generation"))
    model = tiny_model(kind)
    ids = torch.arange(3, 15).view(2, 6)
    images = torch.zeros_like(ids)
    images[:, 2:4] = 1
    with record(model, tmp_path / "t.moetrace") as recording, torch.no_grad():
        model(input_ids=ids, moe_mm_token_type_ids=images)
        model(input_ids=ids)
    assert recording.tokens == 12
    assert recording.drop_reasons == {"no router gave one row a token": 12}
