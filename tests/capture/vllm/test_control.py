"""Start, stop, status and recent: what each request gets, with ranks that are made up."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from moeprof.capture.vllm.endpoint_access import Access, Caller
from moeprof.capture.vllm.endpoint_control import (
    MAX_BODY_BYTES,
    MAX_RECENT_BYTES,
    ControlAnswer,
    ControlRequest,
    RecordingControl,
)
from moeprof.capture.vllm.endpoint_ranks import summarize
from tests.capture.vllm.fake_server import FakeRank, FakeRanks

HEADERS = {"host": "localhost:8000", "content-type": "application/json"}


def control(ranks: FakeRanks, timeout_s: float = 5.0, **access: Any) -> RecordingControl:
    return RecordingControl(ranks.call, Access(**access), timeout_s=timeout_s)


def ask(
    server: RecordingControl,
    action: str,
    body: Any = None,
    query: dict[str, str] | None = None,
    **headers: str,
) -> ControlAnswer:
    return asyncio.run(server.answer(request(action, body, query, **headers)))


def request(
    action: str, body: Any = None, query: dict[str, str] | None = None, **headers: str
) -> ControlRequest:
    content = body if isinstance(body, bytes) else json.dumps(body or {}).encode()
    kept = HEADERS | {name.replace("_", "-"): value for name, value in headers.items()}
    return ControlRequest(f"/moeprof/{action}", Caller("127.0.0.1", kept), content, query or {})


@pytest.fixture
def output(tmp_path: Path) -> dict[str, Any]:
    return {"output": str(tmp_path / "t.moetrace")}


def test_a_recording_from_start_to_stop(output: dict[str, Any]) -> None:
    ranks = FakeRanks(FakeRank(), FakeRank(tp=1, writes=False))
    server = control(ranks)
    assert ask(server, "status").body["recording"] is False
    started = ask(server, "start", {**output, "max_bytes": 5 << 20, "seed": 3})
    assert started.status == 200 and started.body["recording"]
    assert started.body["path"] == output["output"]
    assert ranks.ranks[1].options["max_bytes"] == 5 << 20 and ranks.ranks[1].options["seed"] == 3
    for rank in ranks.ranks:
        rank.tokens = 90
    stopped = ask(server, "stop")
    assert stopped.status == 200 and not stopped.body["recording"]
    assert (stopped.body["tokens"], stopped.body["dropped"]) == (90, {"queue full": 2})
    assert len(stopped.body["ranks"]) == 2


def test_counts_are_summed_over_ranks_that_write(tmp_path: Path) -> None:
    ranks = [FakeRank(dp=dp, tp=tp, writes=tp == 0) for dp in range(3) for tp in range(2)]
    for place, rank in enumerate(ranks):
        rank.tokens, rank.path = 10 * (place + 1), f"/ranks/T/ranks/dp{place:02d}-pp00-tp00"
    summary = summarize([rank.status() for rank in ranks])
    assert summary["tokens"] == 10 + 30 + 50 and summary["steps"] == 5
    assert summary["prefill_tokens"] + summary["decode_tokens"] == summary["tokens"]
    assert summary["path"] == "/ranks/T" and summary["dropped"] == {"queue full": 6}


def test_pipeline_stages_see_the_same_tokens() -> None:
    ranks = [FakeRank(dp=dp, pp=pp) for dp in range(2) for pp in range(3)]
    for tokens, rank in zip([30, 27, 30, 12, 12, 12], ranks, strict=True):
        rank.tokens = tokens
    summary = summarize([rank.status() for rank in ranks])
    assert summary["tokens"] == 30 + 12 and summary["dropped"] == {"queue full": 2 + 2}


def test_a_stop_waits_until_all_is_written(output: dict[str, Any]) -> None:
    ranks = FakeRanks(FakeRank(), FakeRank(dp=1))
    server = control(ranks)
    ask(server, "start", output)
    ranks.ranks[1].closing = 4
    stopped = ask(server, "stop")
    assert stopped.status == 200 and not stopped.body["closing"]
    assert ranks.asked[-2:] == ["status", "status"]


def test_a_rank_that_does_not_write_may_fail(output: dict[str, Any]) -> None:
    ranks = FakeRanks(FakeRank(), FakeRank(tp=1, writes=False, refuses="of no matter"))
    assert ask(control(ranks), "start", output).status == 200


def test_start_while_recording_is_a_conflict(output: dict[str, Any]) -> None:
    ranks = FakeRanks()
    server = control(ranks)
    ask(server, "start", output)
    again = ask(server, "start", {"output": output["output"] + "2"})
    assert again.status == 409 and output["output"] in again.body["error"]
    assert again.body["recording"] is True and ranks.asked.count("start") == 1


def test_of_two_starts_at_once_one_wins(output: dict[str, Any]) -> None:
    ranks = FakeRanks()
    ranks.delay_s = 0.01
    server = control(ranks)

    async def both() -> list[ControlAnswer]:
        starts = [request("start", {"output": f"{output['output']}{n}"}) for n in range(2)]
        return await asyncio.gather(*map(server.answer, starts))

    assert sorted(answer.status for answer in asyncio.run(both())) == [200, 409]
    assert ranks.asked.count("start") == 1


def test_stop_twice_is_a_conflict_that_still_tells_the_counts(output: dict[str, Any]) -> None:
    server = control(FakeRanks())
    assert ask(server, "stop").status == 409
    ask(server, "start", output)
    assert ask(server, "stop").status == 200
    again = ask(server, "stop")
    assert again.status == 409 and again.body["path"] == output["output"]


def test_what_exists_is_not_written_over(output: dict[str, Any]) -> None:
    Path(output["output"]).mkdir()
    ranks = FakeRanks()
    refused = ask(control(ranks), "start", output)
    assert refused.status == 409 and "exists" in refused.body["error"]
    assert "start" not in ranks.asked
    assert ask(control(ranks), "start", {**output, "force": True}).status == 200


def test_a_start_that_one_rank_refuses_is_taken_back(output: dict[str, Any]) -> None:
    ranks = FakeRanks(FakeRank(), FakeRank(dp=1, refuses="no space left on device"))
    answer = ask(control(ranks), "start", output)
    assert answer.status == 500 and answer.body["recording"] is False
    for words in ("dp01-pp00-tp00", "no space left", "others were stopped", output["output"]):
        assert words in answer.body["error"]
    assert not ranks.ranks[0].recording and ranks.asked == ["status", "start", "stop"]


def test_a_rank_that_cannot_be_taken_back_is_named(output: dict[str, Any]) -> None:
    ranks = FakeRanks(FakeRank(), FakeRank(dp=1, refuses="no space"))
    ranks.ranks[0].stuck = True
    answer = ask(control(ranks), "start", output)
    assert "dp00-pp00-tp00 records on" in answer.body["error"] and answer.body["recording"]


def test_a_start_that_all_refuse_stops_nothing(output: dict[str, Any]) -> None:
    ranks = FakeRanks(*(FakeRank(dp=dp, refuses="not a MoE model") for dp in range(3)))
    answer = ask(control(ranks), "start", output)
    assert answer.status == 500 and answer.body["error"] == "not started: not a MoE model"
    assert "stop" not in ranks.asked


def test_a_rank_that_does_not_stop_is_named(output: dict[str, Any]) -> None:
    ranks = FakeRanks(FakeRank(), FakeRank(tp=1))
    server = control(ranks)
    ask(server, "start", output)
    ranks.ranks[1].stuck = True
    answer = ask(server, "stop")
    assert answer.status == 500 and "dp00-pp00-tp01" in answer.body["error"]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "output"),
        (b"[]", "object"),
        (b"{", "JSON"),
        (b"[" * 40_000, "JSON"),
        (b'{"output": "\xff"}', "JSON"),
        ({"output": 3}, "output"),
        ({"output": ""}, "output"),
        ({"output": "/x/t\0"}, "output"),
        ({"output": "/x/t", "max_bytes": -1}, "max_bytes"),
        ({"output": "/x/t", "max_bytes": 1}, "at least"),
        ({"output": "/x/t", "sample_requests": 2}, "sample_requests"),
        ({"output": "/x/t", "rotate": True}, "max_bytes"),
        ({"output": "/x/t", "request_names": "all"}, "request_names"),
        ({"output": "/x/t", "shout": 1}, "shout"),
        ({"output": "t"}, "absolute"),
    ],
)
def test_what_cannot_be_is_named(body: Any, words: str) -> None:
    ranks = FakeRanks()
    answer = ask(control(ranks), "start", body)
    assert answer.status == 400 and words in answer.body["error"]
    assert len(answer.body["error"]) < 600 and "\n" not in answer.body["error"]
    assert "start" not in ranks.asked


def test_only_json_of_a_sane_size_is_taken(output: dict[str, Any]) -> None:
    server = control(FakeRanks())
    for kind in ("", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
        assert ask(server, "stop", content_type=kind).status == 415
    assert ask(server, "start", b" " * (MAX_BODY_BYTES + 1)).status == 413
    assert (
        ask(server, "start", output, content_type="application/json; charset=utf-8").status == 200
    )


def test_nobody_reaches_the_ranks_without_leave(output: dict[str, Any]) -> None:
    ranks = FakeRanks()
    for server, headers in (
        (control(ranks, token="s3cret"), {}),
        (control(ranks), {"origin": "https://evil.example"}),
        (control(ranks), {"host": "evil.example"}),
        (control(ranks), {"x_forwarded_for": "127.0.0.1"}),
    ):
        for action in ("start", "stop", "status", "recent"):
            answer = ask(server, action, output, **headers)
            assert answer.status == 403 and "s3cret" not in answer.body["error"]
    assert ranks.asked == []


def test_recent_rows_are_bounded() -> None:
    ranks = FakeRanks()
    server = control(ranks)
    assert ask(server, "recent", query={"after": "7"}).body["ranks"][0]["rows"]
    assert ranks.ranks[0].options == {"after_step": 7, "max_bytes": MAX_RECENT_BYTES}
    ask(server, "recent", query={"max_bytes": str(1 << 40)})
    assert ranks.ranks[0].options == {"after_step": -1, "max_bytes": MAX_RECENT_BYTES}
    for query in ({"after": "x"}, {"after": "9" * 30}, {"max_bytes": "1e3"}, {"max_bytes": ""}):
        assert ask(server, "recent", query=query).status == 400


def test_an_engine_that_is_slow_dead_or_strange_is_said(output: dict[str, Any]) -> None:
    slow = FakeRanks()
    slow.delay_s = 0.3
    answer = ask(control(slow, timeout_s=0.01), "status")
    assert answer.status == 504 and "0.01 s" in answer.body["error"]

    async def dead(action: str, options: dict[str, Any]) -> list[dict[str, Any]]:
        raise RuntimeError("Engine core died\nlong traceback")

    async def strange(action: str, options: dict[str, Any]) -> list[Any]:
        return [None]

    for call, words in ((dead, "Engine core died"), (strange, "no answer")):
        answer = ask(RecordingControl(call, Access()), "start", output)
        assert answer.status == 503 and words in answer.body["error"]
        assert "traceback" not in answer.body["error"]


def test_an_engine_that_ends_is_not_waited_for() -> None:
    """Or the server, which ends only when its requests have, would stand for a minute."""
    asked: list[str] = []

    async def never(action: str, options: dict[str, Any]) -> list[dict[str, Any]]:
        asked.append(action)
        await asyncio.Event().wait()
        return []

    ended = RecordingControl(never, Access(), alive=lambda: not asked, timeout_s=3600.0)
    answer = ask(ended, "status")
    assert (answer.status, answer.body["error"]) == (503, "the engine has ended")
