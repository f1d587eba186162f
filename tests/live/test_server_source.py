"""A server with the plugin, watched: one rank or many, restarts, refusals, hostile answers."""

from __future__ import annotations

import base64
import json
from contextlib import closing
from typing import Any

import numpy as np
import pytest

from moeprof import MoEModel
from moeprof.errors import InputError, MoeprofError
from moeprof.live import ServerSource, State, StepRows, Watch
from moeprof.live.answers import AnswerError, read_answer, rows_of
from tests.conftest import small_config
from tests.live.rows import ScriptedSource, engine_rows, part, steps_of
from tests.live.server import FakeRank, encoded, serving

MODEL = MoEModel.from_config(small_config())
ROWS = engine_rows(MODEL, [4] * 30)


def same(found: list[StepRows], steps: range) -> None:
    assert [step.step for step in found] == list(steps)
    for step in found:
        assert np.array_equal(step.experts, ROWS.experts[ROWS.step == step.step])


def test_new_steps_are_asked_for_and_come_once() -> None:
    rank = FakeRank(MODEL, part(ROWS, ROWS.step < 10))
    with serving([rank]) as server, closing(ServerSource(server.url)) as source:
        first = source.poll()
        same(first.steps, range(9))  # the tenth may not be whole
        assert first.status.state is State.RECORDING
        assert first.status.tokens == 40 and first.status.engine == "vllm 0.32.0"
        rank.rows = part(ROWS, ROWS.step < 20)
        same(source.poll().steps, range(9, 19))
        same(source.poll().steps, range(19, 20))
        assert [path.split("&")[0] for path in server.asked] == [
            "/moeprof/recent?after=-1", "/moeprof/recent?after=9", "/moeprof/recent?after=19",
        ]  # fmt: skip
        assert source.poll().status.unseen_tokens == 0


def test_figures_are_those_of_the_rows() -> None:
    rank = FakeRank(MODEL, ROWS)
    with serving([rank]) as server, closing(ServerSource(server.url)) as source:
        watch = Watch(source, slots=[4], steps=100)
        watch.poll()
        figures = watch.poll()
    here = Watch(ScriptedSource(MODEL, [steps_of(ROWS)]), slots=[4], steps=100).poll()
    for name in ("per_layer", "hottest", "lru", "distinct_per_step", "window_tokens"):
        assert getattr(figures, name) == getattr(here, name)


def test_what_was_let_go_before_it_was_seen_is_counted() -> None:
    rank = FakeRank(MODEL, part(ROWS, ROWS.step < 10), kept_steps=3)
    with serving([rank]) as server, closing(ServerSource(server.url)) as source:
        assert source.poll().status.unseen_tokens == 0  # what was before is not missed
        rank.rows = part(ROWS, ROWS.step < 20)
        poll = source.poll()
        assert poll.status.unseen_tokens == 7 * 4
        assert poll.steps[-1].step == 18


def test_ranks_are_one_engine() -> None:
    layers = list(MODEL.moe_layers)
    ranks = [
        FakeRank(
            MODEL,
            part(ROWS, np.arange(len(ROWS)) % 2 == dp),
            {"dp": dp, "pp": pp, "tp": 0},
            layers[:1] if pp == 0 else layers[1:],
        )
        for dp in (1, 0)
        for pp in (1, 0)
    ]
    ranks[0].status = {"dropped": {"behind": 7}}
    ranks.append(
        FakeRank(MODEL, ROWS, {"dp": 0, "pp": 0, "tp": 1}, status={"writes": False, "rows": None})
    )
    with serving(ranks) as server, closing(ServerSource(server.url)) as source:
        watch = Watch(source, slots=[4], steps=100)
        watch.poll()
        figures = watch.poll()
    here = Watch(ScriptedSource(MODEL, [steps_of(ROWS)]), slots=[4], steps=100).poll()
    assert figures.tokens == figures.window_tokens == len(ROWS)
    assert figures.per_layer == here.per_layer
    assert figures.distinct_per_step == here.distinct_per_step
    assert figures.dropped == {"behind": 7}
    assert [rank.name for rank in figures.ranks if not rank.writes] == ["dp00-pp00-tp01"]


def test_a_server_that_records_nothing_is_waited_for() -> None:
    idle = FakeRank(MODEL, part(ROWS, ROWS.step < 0), recording=False)
    idle.status = {"path": None, "rows": None}
    with serving([idle]) as server, closing(ServerSource(server.url)) as source:
        watch = Watch(source, steps=100)
        figures = watch.poll()
        assert figures.state == "waiting"
        assert f"moeprof capture start --url {server.url}" in figures.words
        server.ranks = [FakeRank(MODEL, part(ROWS, ROWS.step < 5))]
        assert watch.poll().state == "recording"
        assert watch.figures.window_steps == 4
        server.ranks[0].recording, server.ranks[0].status = False, {"path": None}
        figures = watch.poll()
        assert figures.state == "waiting" and figures.window_steps == 5  # the last figures stay


def test_another_recording_begins_anew() -> None:
    rank = FakeRank(MODEL, ROWS)
    with serving([rank]) as server, closing(ServerSource(server.url)) as source:
        watch = Watch(source, slots=[4], steps=100)
        watch.poll()
        rank.rows = part(ROWS, ROWS.step < 6)  # the same path, fewer tokens
        figures = watch.poll()
        assert (figures.window_steps, figures.tokens, figures.unseen_tokens) == (5, 24, 0)
        rank.status = {"path": "/data/other"}
        rank.rows = part(ROWS, ROWS.step < 9)
        assert watch.poll().window_steps == 8


def test_a_server_that_goes_and_comes_back() -> None:
    rank = FakeRank(MODEL, ROWS)
    with serving([rank]) as server:
        source = ServerSource(server.url, clock=lambda: 1e9)
        port = int(server.url.rpartition(":")[2])
        watch = Watch(source, steps=100)
        before = watch.poll()
    with closing(source):
        gone = watch.poll()
        assert gone.state == "gone" and gone.errors == 1
        assert gone.words.startswith("nothing new since ") and "cannot connect" in gone.words
        assert gone.per_layer == before.per_layer and gone.tokens == before.tokens
        assert watch.poll().errors == 2
        with serving([rank], port=port):
            back = watch.poll()
    assert back.state == "recording" and back.words == "" and back.window_steps == 30


def test_a_server_that_is_down_is_an_error_unless_it_is_waited_for() -> None:
    with serving([FakeRank(MODEL, ROWS)]) as server:
        url = server.url
    with closing(ServerSource(url)) as source, pytest.raises(MoeprofError, match=r"^\S+\d: cannot"):
        source.poll()
    with closing(ServerSource(url, follow=True)) as source:
        assert source.poll().status.state is State.GONE


def test_a_server_without_the_plugin_says_how_to_get_it() -> None:
    with serving([FakeRank(MODEL, ROWS)]) as server, closing(ServerSource(server.url)) as source:
        server.plugin = False
        with pytest.raises(InputError, match="no recording plugin answers there; start the server"):
            source.poll()


def test_a_token_is_sent_where_it_is_wanted() -> None:
    with serving([FakeRank(MODEL, ROWS)], token="secret") as server:
        source = ServerSource(server.url)
        with closing(source), pytest.raises(InputError, match=r"refused: .*MOEPROF_TOKEN"):
            source.poll()
        with closing(ServerSource(server.url, token="secret")) as source:
            assert source.poll().steps


def shape_of_rank(**changes: Any) -> dict[str, Any]:
    said = (
        FakeRank(MODEL, ROWS).answer("recent", {"after_step": -1, "max_bytes": 1 << 20}) | changes
    )
    return {"recording": True, "ranks": [said]}


def narrow_rows() -> str:
    return encoded(part(ROWS, ROWS.step < 2), list(MODEL.moe_layers), 16)


HOSTILE: list[tuple[Any, str]] = [
    ([], "an answer of another kind"),
    ({"recording": "yes", "ranks": []}, "recording"),
    ({"recording": True, "ranks": [7]}, "ranks.0"),
    ({"recording": True, "ranks": [{}] * 5000}, "ranks"),
    (shape_of_rank(tokens=-1), "ranks.0.tokens"),
    (shape_of_rank(tokens=1.5), "ranks.0.tokens"),
    (shape_of_rank(layers=[1, 1, 2]), "twice"),
    (shape_of_rank(layers=list(range(4000)), experts=60_000), "too many"),
    (shape_of_rank(rows="!!"), "its rows cannot be read"),
    (shape_of_rank(rows=base64.b64encode(b"x" * 99).decode()), "its rows cannot be read"),
    (shape_of_rank(rows=narrow_rows()[:-400]), "its rows cannot be read"),
    (shape_of_rank(layers=[1, 2, 3, 4]), "no such column as experts.4"),
    (shape_of_rank(top_k=2), "no such column as experts.1"),
    (shape_of_rank(experts=4), "is not one of 4 experts"),
    ({"recording": True, "ranks": shape_of_rank()["ranks"] * 2}, "the same"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "words"), HOSTILE)
def test_hostile_answers_are_one_line(body: Any, words: str) -> None:
    with serving([FakeRank(MODEL, ROWS)]) as server:
        with closing(ServerSource(server.url)) as source:
            server.body = json.dumps(body).encode()
            with pytest.raises(MoeprofError) as error:
                source.poll()
            assert words in str(error.value) and "\n" not in str(error.value)
        with closing(ServerSource(server.url)) as source:  # later on the last figures stay
            server.body = None
            watch = Watch(source, steps=100)
            before = watch.poll()
            server.body = json.dumps(body).encode()
            after = watch.poll()
            assert after.state == "gone" and words in after.words
            assert after.per_layer == before.per_layer


def test_any_bytes_in_place_of_rows_are_rows_or_one_line() -> None:
    content = base64.b64decode(narrow_rows())
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(400):
        broken = bytearray(content)
        for place in rng.integers(0, len(content), 3):
            broken[place] = rng.integers(0, 256)
        answer = read_answer(shape_of_rank(rows=base64.b64encode(bytes(broken)).decode()))
        try:
            for rows in rows_of(answer.ranks[0]):
                assert rows.experts.max() < 16 and (np.diff(rows.step) >= 0).all()
        except AnswerError as error:
            assert "\n" not in str(error)
            refused += 1
    assert refused > 50


def test_an_answer_that_is_too_large_is_not_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moeprof.live.server_source.ANSWER_BYTES", 5000)
    with serving([FakeRank(MODEL, ROWS)]) as server:
        server.body = json.dumps(shape_of_rank()).encode()
        assert len(server.body) > 5000
        source = ServerSource(server.url)
        with closing(source), pytest.raises(MoeprofError, match="larger than 5,000 bytes"):
            source.poll()
