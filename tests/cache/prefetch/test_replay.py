"""The compiled loop is the slow one event by event, and no fetch is counted twice or forgotten."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moeprof.cache import POLICIES, replay_cache
from moeprof.cache.events import find_steps
from moeprof.cache.prefetch import PREDICTORS, PrefetchReplay, replay_prefetch
from moeprof.cache.prefetch.demand import bounded_chunks, gather_demand
from moeprof.cache.prefetch.predictors.names import Question, make_predictor
from moeprof.cache.prefetch.replay import check_policy
from moeprof.errors import InputError, TraceError
from moeprof.model import MoEModel
from moeprof.trace import TokenRows, Trace, open_trace, synthesize_rows
from tests.analysis.damage import with_foreign_id
from tests.cache.prefetch import oracles
from tests.conftest import small_config
from tests.recordings import SHIPPED

EXPERTS, LAYERS, TOP_K = 9, 3, 2
SCOPES = st.sampled_from(["layer", "global"])
LINKS = st.sampled_from([None, 0.3, 1.0, 1.5, 4.0])


def accepted(policy: str) -> bool:
    try:
        check_policy(policy)
    except InputError:
        return False
    return True


# One of each kind of state: a queue, a hand, buckets, a tree, segments with ghosts, a draw. Each
# takes seconds to compile.
ONLINE = ["lru", "sieve", "lfu", "lfu-decayed", "arc", "s3-fifo", "random"]


def made_up(seed: int, tokens: int = 48, batch: int = 1) -> Trace:
    """Three MoE layers of nine experts, top-2, `batch` tokens a step, two of a request at most;
    requests last four steps. What the next layer's router sees is made up as well.
    """
    model = MoEModel.from_config(small_config(layers=LAYERS + 1, experts=EXPERTS, top_k=TOP_K))
    rows, requests = synthesize_rows(model, tokens, seed=seed, prefill=0.0)
    rows.step[:] = np.arange(tokens) // batch
    rows.request[:] = rows.step // 4 * batch + np.arange(tokens) % batch // 2
    rng = np.random.default_rng(seed)
    shape = (tokens, LAYERS - 1, EXPERTS)
    seen = rng.random(shape).argsort(axis=2)[:, :, :TOP_K].astype(np.uint8)
    weights = (rng.integers(1, 1024, seen.shape) / 1024).astype(np.float16)  # sums are exact
    rows = TokenRows(**{**vars(rows), "next_experts": seen, "next_weights": weights})
    return Trace.in_memory(model, rows, requests)


def question(trace: Trace, lookahead: int, width: int, recall: float = 0.7) -> Question:
    """As `replay_prefetch` asks it with the first half of the steps to learn on."""
    steps = find_steps(trace)
    fit = (len(steps.starts) - 1) // 2
    return Question(trace, steps, gather_demand(trace, steps), fit, lookahead, width, recall, 0)


def names(predictor: str, asked: Question) -> oracles.Names:
    """What the compiled predictor says at every event."""
    made = make_predictor(predictor, asked)
    parts = [made.name(chunk) for chunk in bounded_chunks(asked.trace, asked.steps)]
    return [[e for e in row if e >= 0] for row in np.concatenate(parts).tolist()]


def nested(trace: Trace) -> tuple[list[list[list[list[int]]]], list[list[int]]]:
    """The tokens' experts by step and layer, and the tokens' requests by step."""
    steps = sorted(set(trace.step.tolist()))
    ids = [trace.experts(layer) for layer in trace.layers]
    experts = [[layer[trace.step == step].tolist() for layer in ids] for step in steps]
    return experts, [trace.request[trace.step == step].tolist() for step in steps]


def distinct(trace: Trace) -> list[list[int]]:
    """Each event's experts in order of first use."""
    return [
        list(dict.fromkeys(e for token in event for e in token))
        for step in nested(trace)[0]
        for event in step
    ]


@settings(max_examples=40)
@given(
    seed=st.integers(0, 99),
    batch=st.integers(1, 4),
    lookahead=st.integers(1, LAYERS),
    width=st.integers(1, 5),
)
def test_predictors_are_their_definitions(
    seed: int, batch: int, lookahead: int, width: int
) -> None:
    trace = made_up(seed, batch=batch)
    asked = question(trace, lookahead, width)
    steps, requests = nested(trace)
    fit = asked.learned_steps
    assert names("previous-token", asked) == oracles.previous_token(steps, lookahead, width)
    assert names("static", asked) == oracles.static(steps, lookahead, width, fit, EXPERTS)
    events = distinct(trace)
    coming = [*events[lookahead:], *[[]] * lookahead]
    assert names("oracle", asked) == [event[:width] for event in coming]
    expected = oracles.markov(steps, requests, lookahead, width, fit, EXPERTS)
    assert names("markov", asked) == expected
    near = oracles.activation_matrix(steps, requests, lookahead, width, fit, EXPERTS)
    assert all(
        one in allowed for one, allowed in zip(names("activation-matrix", asked), near, strict=True)
    )
    if lookahead == 1:
        assert names("next-gate", asked) == oracles.next_gate(*seen_ahead(trace), width)


def seen_ahead(trace: Trace) -> tuple[list[list[list[list[int]]]], list[list[list[list[float]]]]]:
    """What the next layer's router sees and its weights, by step and layer."""
    steps = sorted(set(trace.step.tolist()))
    chosen = [trace.next_experts(layer) for layer in trace.layers[:-1]]
    weights = [trace.next_weights(layer) for layer in trace.layers[:-1]]
    by_step = [[layer[trace.step == step].tolist() for layer in chosen] for step in steps]
    return by_step, [[layer[trace.step == step].tolist() for layer in weights] for step in steps]


@settings(max_examples=80)
@given(
    predictor=st.sampled_from(sorted(PREDICTORS)),
    seed=st.integers(0, 99),
    batch=st.integers(1, 4),
    slots=st.integers(1, EXPERTS),
    lookahead=st.integers(1, LAYERS),
    width=st.integers(1, 5),
    scope=SCOPES,
    link=LINKS,
)
def test_the_loop_is_the_slow_replay_event_by_event(
    predictor: str,
    seed: int,
    batch: int,
    slots: int,
    lookahead: int,
    width: int,
    scope: str,
    link: float | None,
) -> None:
    trace = made_up(seed, batch=batch)
    lookahead = 1 if predictor == "next-gate" else lookahead
    slots *= LAYERS if scope == "global" else 1
    asked = question(trace, lookahead, width)
    expected = oracles.Replayed(
        distinct(trace),
        names(predictor, asked),
        layers=LAYERS,
        lookahead=lookahead,
        slots=slots,
        scope=scope,
        transfer=1 / link if link else 0.0,
        first=asked.learned_steps * LAYERS,
    ).run()
    row = replay_prefetch(
        trace, predictor=predictor, slots=slots, lookahead=lookahead, width=width, scope=scope,
        link_experts_per_layer=link, events=True,
    ).row(predictor)  # fmt: skip
    assert row.event_misses is not None and row.event_stalls is not None
    assert row.event_misses.ravel().tolist() == expected.misses
    np.testing.assert_allclose(row.event_stalls.ravel(), expected.stalls, atol=1e-9)
    counted = ("accesses", "misses", "prefetched", "useful", "late", "wasted", "unused", "dropped")
    for name in (*counted, "polluting"):
        assert getattr(row, name) == expected.total[name], name


def test_a_cache_may_be_filled_ahead_under_most_policies() -> None:
    queues = {"lru", "fifo", "clock", "sieve", "slru", "2q", "arc", "s3-fifo", "w-tinylfu"}
    assert queues | {"lfu", "lfu-perfect", "lfu-decayed", "lfru", "random"} <= set(
        filter(accepted, POLICIES)
    )


def conserved(row: PrefetchReplay) -> None:
    """Every fetch came to one end."""
    assert row.hits + row.misses == row.accesses
    ends = row.useful + row.late + row.wasted + row.unused + row.dropped
    assert ends == row.prefetched
    assert row.late <= min(row.prefetched, row.misses)
    assert row.polluting <= row.misses and row.useful <= row.hits


@settings(max_examples=60)
@given(
    policy=st.sampled_from(ONLINE),
    predictor=st.sampled_from(sorted(PREDICTORS)),
    seed=st.integers(0, 99),
    batch=st.integers(1, 4),
    slots=st.integers(1, EXPERTS),
    lookahead=st.integers(1, LAYERS),
    scope=SCOPES,
    link=LINKS,
)
def test_every_policy_conserves_fetches_and_without_them_is_the_plain_replay(
    policy: str,
    predictor: str,
    seed: int,
    batch: int,
    slots: int,
    lookahead: int,
    scope: str,
    link: float | None,
) -> None:
    trace = made_up(seed, batch=batch)
    lookahead = 1 if predictor == "next-gate" else lookahead
    replays = replay_prefetch(
        trace, predictor=predictor, slots=slots, policy=policy, lookahead=lookahead, scope=scope,
        link_experts_per_layer=link, events=True,
    )  # fmt: skip
    for row in replays.rows:
        conserved(row)
    plain = replay_cache(trace, policy=policy, slots=slots, scope=scope, fit=0.5, events=True)
    base, bare = replays.row("none"), plain.rows[0]
    assert base.event_misses is not None and bare.event_misses is not None
    judged = base.event_misses[replays.fit_steps :]
    assert judged.T.tolist() == bare.event_misses.tolist()
    assert base.misses == bare.misses and base.prefetched == 0
    nothing = replay_prefetch(
        trace, predictor=predictor, slots=slots, policy=policy, scope=scope, width=0
    )
    assert nothing.row(predictor).misses == bare.misses
    json.dumps(replays.to_dict(), allow_nan=False)


@settings(max_examples=40)
@given(
    policy=st.sampled_from(ONLINE),
    seed=st.integers(0, 99),
    batch=st.integers(1, 4),
    lookahead=st.integers(1, LAYERS - 1),
)
def test_an_oracle_with_a_link_at_once_and_room_for_an_event_never_misses_again(
    policy: str, seed: int, batch: int, lookahead: int
) -> None:
    trace = made_up(seed, batch=batch)
    room = max(map(len, distinct(trace)))
    row = replay_prefetch(
        trace, predictor="oracle", policy=policy, slots=room, width=room, lookahead=lookahead,
        fit=0.0, events=True,
    ).row("oracle")  # fmt: skip
    assert row.event_misses is not None
    assert row.event_misses.ravel()[lookahead:].sum() == 0
    assert row.late == row.wasted == row.unused == row.polluting == 0
    assert row.stall_layers_per_token == 0 and row.precision == row.recall == 1.0


@settings(max_examples=30)
@given(seed=st.integers(0, 99), slots=st.integers(TOP_K, EXPERTS), scope=SCOPES)
def test_a_slower_link_makes_layers_wait_longer(seed: int, slots: int, scope: str) -> None:
    trace = made_up(seed)
    stalls = [
        replay_prefetch(
            trace, predictor="oracle", slots=slots, scope=scope, link_experts_per_layer=link
        ).row("none").stall_layers_per_token
        for link in (8.0, 2.0, 0.5, None)
    ]  # fmt: skip
    assert stalls[3] == 0 <= stalls[0] <= stalls[1] <= stalls[2]
    assert stalls[2] == pytest.approx(16 * stalls[0])


def test_without_prefetch_a_stall_is_the_misses_over_the_rate() -> None:
    trace = made_up(5)
    row = replay_prefetch(trace, slots=4, link_experts_per_layer=2.0).row("none")
    assert row.stall_layers_per_token == pytest.approx(row.misses_per_token / 2.0)


def test_recall_is_what_was_asked_for_and_the_same_for_the_same_seed() -> None:
    trace = made_up(1, tokens=3000)
    for recall in (0.0, 0.3, 0.9, 1.0):
        replays = replay_prefetch(trace, predictor="recall", slots=4, recall=recall, width=4)
        row = replays.row("recall")
        assert row.recall == pytest.approx(recall, abs=0.02)
        assert row.precision == pytest.approx(recall / 2, abs=0.01)
        again = replay_prefetch(trace, predictor="recall", slots=4, recall=recall, width=4)
        assert json.dumps(replays.to_dict()) == json.dumps(again.to_dict())
    other = replay_prefetch(trace, predictor="recall", slots=4, width=4, seed=1).row("recall")
    first = replay_prefetch(trace, predictor="recall", slots=4, width=4).row("recall")
    assert first.misses != other.misses


def test_what_learns_is_judged_on_later_steps_alone() -> None:
    trace = open_trace(SHIPPED)
    options = {"slots": 32, "max_num_seqs": 1, "max_num_batched_tokens": 256}
    whole = replay_prefetch(trace, predictor=["markov", "static"], **options)  # type: ignore[arg-type]
    assert whole.fit_steps > 0 and abs(whole.steps - whole.fit_steps) <= 1
    asked = question(made_up(0), 1, 2)
    starts = asked.steps.starts[: asked.learned_steps + 1]
    cut = asked._replace(steps=asked.steps._replace(starts=starts))
    later = make_predictor("markov", asked), make_predictor("markov", cut)
    assert np.array_equal(later[0]._share, later[1]._share)  # type: ignore[attr-defined]
    with pytest.raises(InputError, match="learns on earlier steps"):
        replay_prefetch(trace, predictor="static", slots=32, fit=0.0)


def test_bytes_are_counts_times_the_layers_own_sizes() -> None:
    trace = made_up(2)
    stated = {layer: 100 * (place + 1) for place, layer in enumerate(trace.layers)}
    one = replay_prefetch(trace, predictor="markov", slots=3, expert_bytes=stated).row("markov")
    same = dict.fromkeys(trace.layers, 7)
    row = replay_prefetch(trace, predictor="markov", slots=3, expert_bytes=same).row("markov")
    tokens = trace.tokens // 2
    assert row.useful_bytes == pytest.approx(7 * row.useful / tokens)
    assert row.late_bytes == 7 * row.late / tokens
    assert row.wasted_bytes == pytest.approx(7 * (row.wasted + row.unused) / tokens)
    moved = row.misses - row.late + row.prefetched - row.dropped
    assert row.bytes_per_token == pytest.approx(7 * moved / tokens)
    assert one.misses == row.misses and one.bytes_per_token != row.bytes_per_token


def test_a_machine_gives_the_rate_and_its_band() -> None:
    trace = open_trace(SHIPPED)
    replays = replay_prefetch(trace, slots=8, hardware="rtx-3090", layer_ms=0.5)
    rate, size = replays.link_experts_per_layer, replays.bytes_per_expert
    assert rate is not None and size is not None and rate.source.startswith("rtx-3090: ")
    from moeprof.hardware import load_hardware

    bandwidth = load_hardware("rtx-3090").host_link_rate
    assert rate.value == pytest.approx(bandwidth.value * 0.5e-3 / size, rel=1e-3)
    assert rate.provenance == bandwidth.provenance
    stall = replays.rows[0].stall_ms_per_token
    assert stall is not None
    assert stall.value == pytest.approx(0.5 * replays.rows[0].stall_layers_per_token)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"predictor": "guess"}, "predictor 'guess' is not one of"),
        ({"predictor": []}, "no predictor"),
        ({"width": 10}, "width 10: 0 to 9"),
        ({"lookahead": 4}, "lookahead 4: 1 to 3"),
        ({"lookahead": 0}, "lookahead 0"),
        ({"predictor": "next-gate", "lookahead": 2}, "one layer ahead"),
        ({"predictor": "activation-matrix", "fit": 0.05}, "give a larger --fit"),
        ({"recall": 1.1}, "recall 1.1"),
        ({"fit": 1.0}, "fit 1.0"),
        ({"scope": "quota"}, "not quota"),
        ({"policy": "static"}, "admits nothing"),
        ({"policy": "belady"}, "knows the future"),
        ({"policy": "nonsense"}, "policy 'nonsense'"),
        ({"link_experts_per_layer": 0.0}, "above 0"),
        ({"hardware": "rtx-3090"}, "layer_ms"),
        ({"hardware": "rtx-3090", "layer_ms": 1.0, "link_experts_per_layer": 1.0}, "not both"),
    ],
)
def test_what_cannot_be_replayed_is_refused_in_a_sentence(
    options: dict[str, object], words: str
) -> None:
    with pytest.raises(InputError, match=words):
        replay_prefetch(made_up(0), slots=4, **options)  # type: ignore[arg-type]


def test_all_leaves_out_what_the_recording_does_not_allow_and_says_why() -> None:
    trace = made_up(0)
    assert not replay_prefetch(trace, predictor="all", slots=4).left_out
    ahead = replay_prefetch(trace, predictor="all", slots=4, lookahead=2)
    assert list(ahead.left_out) == ["next-gate"]
    shown = [name for name in PREDICTORS if name != "next-gate"]
    assert [row.predictor for row in ahead.rows] == ["none", *shown]
    with pytest.raises(InputError, match="record with --next-layer"):
        replay_prefetch(open_trace(SHIPPED), predictor="next-gate", slots=4)


def test_an_id_that_names_no_expert_is_refused() -> None:
    with pytest.raises(TraceError, match="layer 2 an expert id is not below 16"):
        replay_prefetch(with_foreign_id(), slots=4)
