"""SGLang's recorder over HTTP: a server that writes dumps as SGLang does, which is not run here."""

from __future__ import annotations

import socket
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moeprof.capture import Prompt
from moeprof.capture.server import capture_recorder
from moeprof.errors import InputError, MoeprofError
from moeprof.trace import open_trace, validate_trace

from .engines import MODEL, SglangServer, all_layers, routing_of
from .sockets import Request, send, serving

torch = pytest.importorskip("torch")
TEXT = "what others ask of the server"


@dataclass
class RecordingServer(SglangServer):
    """Start clears, dump writes a file a rank and clears, as srt/eplb/expert_distribution.py."""

    folder: Path = Path()
    mode: str | None = "per_token"
    ranks: int = 2  # of one tensor-parallel group: the same tokens
    facts: dict[str, Any] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)

    def __call__(self, request: Request, connection: socket.socket) -> None:
        call = request.path.removesuffix("_expert_distribution_record").strip("/")
        if request.path == "/get_server_info":
            facts = {"expert_distribution_recorder_mode": self.mode, "tp_size": self.ranks}
            send(connection, {**facts, "dp_size": 1, "version": "0.5.23", **self.facts})
        elif call in ("start", "stop", "dump"):
            self.calls.append(call)
            if call == "dump":
                self._dump()
            send(connection, f"{call.title()} recording the expert distribution.\n")
        else:
            super().__call__(request, connection)

    def _dump(self) -> None:
        for rank in range(self.ranks if self.mode == "per_token" else 1):
            name = f"expert_distribution_recorder_{time.time()}"
            name += f"_{rank}.pt" if self.mode == "per_token" else ".pt"
            torch.save(self._content(rank), self.folder / name)

    def _content(self, rank: int) -> dict[str, Any]:
        ids = routing_of(TEXT, len(TEXT))
        if self.mode == "stat":
            counts = np.zeros((4, MODEL.layers, MODEL.experts), np.int32)
            for layer, chosen in zip(MODEL.moe_layers, ids.swapaxes(0, 1), strict=True):
                counts[0, layer] = np.bincount(chosen.reshape(-1), minlength=MODEL.experts)
            return {"rank": 0, "logical_count": torch.from_numpy(counts)}
        topk = np.full((MODEL.layers, len(TEXT), 8), -1, np.int32)
        topk[1:, :, :2] = all_layers(ids)[:, 1:].swapaxes(0, 1)
        record = {
            "forward_pass_id": 1, "rank": rank, "gatherer_key": "primary",
            "topk_ids_of_layer": torch.from_numpy(topk), "input_ids": list(TEXT.encode()),
            "positions": list(range(len(TEXT))), "extend_seq_lens": [len(TEXT)],
            "forward_mode": 1, "misc_objects": [],
        }  # fmt: skip
        mapping = torch.arange(MODEL.experts).repeat(MODEL.layers, 1)
        return {"records": [record], "last_physical_to_logical_map": mapping}


def test_all_traffic_is_recorded_and_ranks_are_not_counted_twice(tmp_path: Path) -> None:
    old = tmp_path / "expert_distribution_recorder_1.5_0.pt"
    old.write_bytes(b"of another day")
    server = RecordingServer(folder=tmp_path)
    with serving(server) as listening:
        result = capture_recorder(
            listening.url, tmp_path / "t", duration_s=0.1, dump_folder=tmp_path, model=MODEL
        )
    assert server.calls == ["start", "stop", "dump"]
    trace = open_trace(tmp_path / "t")
    assert validate_trace(tmp_path / "t").problems == []
    assert result.tokens == result.prefill_tokens == trace.tokens == len(TEXT)
    expected = routing_of(TEXT, len(TEXT))
    assert all((trace.experts(n) == expected[:, n - 1]).all() for n in (1, 2, 3))
    assert not trace.manifest.token_ids  # the dump has them
    assert sum("read from" in note for note in result.notes) == 1


def test_ranks_of_data_parallel_attention_have_tokens_of_their_own(tmp_path: Path) -> None:
    facts = {"enable_dp_attention": True, "dp_size": 2, "tp_size": 4}
    server = RecordingServer(folder=tmp_path, ranks=4, facts=facts)
    with serving(server) as listening:
        result = capture_recorder(
            listening.url, tmp_path / "t", duration_s=0.1, dump_folder=tmp_path, model=MODEL
        )
    assert result.tokens == 2 * len(TEXT)  # of ranks 0 and 2


def test_counts_of_mode_stat_and_prompts_as_traffic(tmp_path: Path) -> None:
    seen: list[Any] = []
    server = RecordingServer(folder=tmp_path, mode="stat")
    server.change = lambda request, _: seen.append(request.json())
    with serving(server) as listening:
        result = capture_recorder(
            listening.url, tmp_path / "t", prompts=[Prompt("a"), Prompt("b")], model=MODEL,
            dump_folder=tmp_path,
        )  # fmt: skip
    assert [body["return_routed_experts"] for body in seen] == [False, False]
    assert result.tokens == len(TEXT) and result.failed == {} and result.prompts == 2
    assert open_trace(tmp_path / "t").counts.sum() == 3 * 2 * len(TEXT)


def test_a_recorder_that_is_off_or_in_use_is_never_started(tmp_path: Path) -> None:
    for server, says in (
        (RecordingServer(mode=None), "--expert-distribution-recorder-mode per_token"),
        (RecordingServer(facts={"enable_eplb": True}), "--enable-eplb needs the recorder itself"),
    ):
        with serving(server) as listening, pytest.raises(InputError, match=says):
            capture_recorder(listening.url, tmp_path / "t", duration_s=1)
        assert server.calls == []


def test_a_dump_on_another_disk_says_what_to_fetch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moeprof.capture.server.recorder._APPEAR_S", 0.1)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    server = RecordingServer(folder=elsewhere)
    with serving(server) as listening, pytest.raises(MoeprofError) as caught:
        capture_recorder(
            listening.url, tmp_path / "t", duration_s=0.1, dump_folder=tmp_path, model=MODEL
        )
    assert "fetch expert_distribution_recorder_*.pt from there, and run: moeprof import" in str(
        caught.value
    )
    assert server.calls == ["start", "stop", "dump"] and not (tmp_path / "t").exists()


def test_ctrl_c_stops_the_recorder_and_keeps_what_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sleep = time.sleep

    def interrupted(seconds: float) -> None:
        if seconds > 10:
            raise KeyboardInterrupt
        sleep(seconds)

    monkeypatch.setattr(time, "sleep", interrupted)
    server = RecordingServer(folder=tmp_path)
    with serving(server) as listening, pytest.raises(KeyboardInterrupt):
        capture_recorder(
            listening.url, tmp_path / "t", duration_s=20, dump_folder=tmp_path, model=MODEL
        )
    assert server.calls == ["start", "stop", "dump"]
    assert open_trace(tmp_path / "t").tokens == len(TEXT)
