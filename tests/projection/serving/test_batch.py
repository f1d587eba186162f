from __future__ import annotations

import pytest

from moeprof.errors import InputError
from moeprof.projection.step.batch import Batch


def test_tokens_count_drafts_and_prompts() -> None:
    assert Batch(3, 100.0, 50, 0.0).tokens == 53
    assert Batch(3, 100.0, 50, 0.0, draft_tokens=2).tokens == 59


@pytest.mark.parametrize("name", ["decode", "context", "prefill", "prefill_context"])
def test_negative_and_nan_are_refused(name: str) -> None:
    fine = {"decode": 1, "context": 1.0, "prefill": 1, "prefill_context": 1.0}
    for value in (-1, float("nan")):
        with pytest.raises(InputError, match=name):
            Batch(**(fine | {name: value}))
