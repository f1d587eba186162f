"""The asynchronous path: pinned memory, a side stream, events."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moeprof.capture import record
from moeprof.trace import open_trace

from .conftest import FAMILIES, live_rows


@pytest.mark.gpu
@pytest.mark.parametrize("family", ["m3", "mixtral"])
def test_a_gpu_records_what_its_routers_returned(
    family: str, padded: tuple[Any, Any], tmp_path: Path, torch: Any
) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    torch.manual_seed(0)
    model = FAMILIES[family]().eval().to("cuda")
    ids, mask = (tensor.to("cuda") for tensor in padded)
    kept: dict[int, list[Any]] = {}
    for layer, block in enumerate(model.model.layers):
        router = getattr(block.mlp, "gate", None)
        if router is not None:
            router.register_forward_hook(keep(kept.setdefault(layer, [])))
    options = {"max_new_tokens": 40, "eos_token_id": None, "pad_token_id": 0}
    with record(model, tmp_path / "t.moetrace", weights=True, token_ids=True) as recording:
        out = model.generate(ids, attention_mask=mask, **options)
    plain = model.generate(ids, attention_mask=mask, **options)
    trace = open_trace(tmp_path / "t.moetrace")
    assert torch.equal(out, plain) and (recording.error, recording.dropped) == (None, 0)
    live = live_rows(out.cpu(), padded[1])
    for layer in trace.layers:
        pairs = zip(kept[layer], live, strict=False)  # the plain run follows
        rows = [taken.cpu().numpy()[np.asarray(m).reshape(-1) != 0] for taken, m in pairs]
        assert np.array_equal(trace.experts(layer), np.concatenate(rows))
    assert trace.token_id[trace.request == 0].tolist() == out[0, :-1].tolist()


def keep(taken: list[Any]) -> Callable[..., None]:
    """A hook that keeps the ids of every call on the device."""

    def hook(module: Any, args: Any, output: Any) -> None:
        taken.append(output[2].clone())

    return hook
