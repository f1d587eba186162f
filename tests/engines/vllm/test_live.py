"""A running server is watched under load: what was seen live is what the trace then holds."""

from __future__ import annotations

import logging
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path

from moeprof.live import LiveFigures, ServerSource, TraceSource, Watch
from tests.engines.vllm.server import Server, at_once, serving

logger = logging.getLogger(__name__)
SLOTS = [2, 4]
PROMPTS = [list(range(10 + i, 40 + 3 * i)) for i in range(12)]


def test_figures_seen_live_are_those_of_the_trace(tiny: Path, tmp_path: Path) -> None:
    path = tmp_path / "run.moetrace"
    with serving(tiny, tmp_path, "--enforce-eager", VLLM_PLUGINS="moeprof") as server:
        source = ServerSource(server._url)
        with closing(source):
            watch = Watch(source, slots=SLOTS, steps=10_000)
            assert watch.poll().state == "waiting"
            server.call("/moeprof/start", {"output": str(path)})
            polls = _poll_under_load(watch, server)
            server.settled()
            watch.poll()
            live = watch.poll()  # the newest step is whole once nothing follows
            server.call("/moeprof/stop", {})
    with closing(TraceSource(path, follow=True)) as source:
        stored = Watch(source, slots=SLOTS, steps=10_000).caught_up()
    logger.info("%d polls saw %d tokens in %d steps", polls, live.window_tokens, live.window_steps)
    assert polls > 2
    _same(live, stored)


def _poll_under_load(watch: Watch, server: Server) -> int:
    """Polls while clients wait for answers; how many."""
    calls = [partial(server.complete, f"live-{i}", prompt, 150) for i, prompt in enumerate(PROMPTS)]
    polls = 0
    with ThreadPoolExecutor(1) as pool:
        load = pool.submit(at_once, calls, 4)
        while not load.done():
            assert watch.poll().state == "recording"
            polls += 1
            time.sleep(0.2)
        load.result()
    return polls


def _same(live: LiveFigures, stored: LiveFigures) -> None:
    assert live.unseen_tokens == 0 and live.errors == 0
    assert live.tokens == live.window_tokens == stored.window_tokens > 12 * 150
    for name in ("prefill_tokens", "decode_tokens", "window_steps", "mean_imbalance", "hottest"):
        assert getattr(live, name) == getattr(stored, name)
    for name in ("per_layer", "lru", "distinct_per_step", "distinct_null"):
        assert getattr(live, name) == getattr(stored, name)
