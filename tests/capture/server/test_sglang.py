"""What an SGLang server returns is what the trace holds. SGLang itself needs a GPU and is not run:
`engines.SglangServer` speaks its protocol."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moeprof.capture.server import ServerCapture
from moeprof.capture.server.asking import Asking
from moeprof.errors import InputError, MoeprofError
from moeprof.model import MoEModel
from moeprof.trace import Trace
from tests.conftest import small_config

from .engines import SglangServer, routing_of
from .test_vllm import PROMPTS, captured, ids_of


def sglang(server: SglangServer, output: Path, **options: Any) -> tuple[Trace, ServerCapture]:
    return captured(server, output, engine="sglang", **options)


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("renamed", [False, True])
def test_recorded_ids_are_those_returned(tmp_path: Path, chat: bool, renamed: bool) -> None:
    asking = Asking(max_new_tokens=4, chat=chat)
    trace, result = sglang(SglangServer(renamed=renamed), tmp_path / "t", asking=asking)
    for number, prompt in enumerate(PROMPTS):
        text = "<user>" * chat + prompt.text
        assert (ids_of(trace, number) == routing_of(text, len(text) + 3)).all()
        mine = trace.request == number
        assert (trace.phase[mine] == (np.arange(len(text) + 3) >= len(text))).all()
    assert result.engine == "sglang" and result.engine_version == "0.5.23"
    assert trace.manifest.engine == "sglang"


def test_start_cache_and_choices(tmp_path: Path) -> None:
    asking = Asking(max_new_tokens=4, prompt_start=5)
    trace, result = sglang(SglangServer(), tmp_path / "start", asking=asking)
    assert (ids_of(trace, 0) == routing_of(PROMPTS[0].text, 14)[5:]).all()
    assert trace.position[:9].tolist() == list(range(5, 14)) and result.unasked_tokens == 10
    trace, result = sglang(SglangServer(cached=6), tmp_path / "cache")
    assert trace.position[:8].tolist() == list(range(6, 14)) and result.cached_tokens == 12
    asking = Asking(max_new_tokens=4, choices=2)
    trace, result = sglang(SglangServer(), tmp_path / "choices", asking=asking)
    assert result.requests == 4 and result.repeated_tokens == result.prefill_tokens
    assert (ids_of(trace, 1) == routing_of(PROMPTS[0].text, 14, 1)[11:]).all()


def test_a_layer_that_is_not_captured_is_an_error_that_names_the_flag(tmp_path: Path) -> None:
    with pytest.raises(MoeprofError, match=r"all ids of layer 2 are 0.*--moe-runner-backend"):
        sglang(SglangServer(silent=(2,)), tmp_path / "t")
    assert not (tmp_path / "t").exists()


def test_a_server_without_the_flag_and_a_wrong_model_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(MoeprofError, match="start the server with --enable-return-routed-experts"):
        sglang(SglangServer(enabled=False), tmp_path / "t")
    other = MoEModel.from_config(small_config(layers=7, top_k=3))
    with pytest.raises(MoeprofError, match="no whole rows of 7 layers x top-3"):
        sglang(SglangServer(), tmp_path / "t", model=other)


def test_what_sglang_cannot_return_is_refused_before_it_is_asked(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no token ids of prompts"):
        sglang(SglangServer(), tmp_path / "t", asking=Asking(token_ids=True))
    with pytest.raises(InputError, match="one choice of a chat"):
        sglang(SglangServer(), tmp_path / "t", asking=Asking(chat=True, choices=2))
