"""The bounded queue and its thread."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from moeprof.capture.drain import Drain


def test_items_arrive_in_order_and_all_before_close_returns() -> None:
    seen: list[int] = []
    drain = Drain(seen.extend, lambda: None, 1000)
    assert all(drain.offer(item, 1) for item in range(500))
    drain.close()
    drain.close()
    assert seen == list(range(500)) and drain.pending_bytes == 0


def test_beyond_the_limit_an_offer_is_refused_at_once() -> None:
    go, seen = threading.Event(), list[str]()

    def handle(items: Sequence[str]) -> None:
        go.wait()
        seen.extend(items)

    drain = Drain(handle, lambda: None, 100)
    assert drain.offer("a", 60)
    assert not drain.offer("b", 41)
    assert not drain.offer("c", 31, reserve=10)
    assert drain.offer("d", 40)
    assert drain.offer("of no bytes")
    assert drain.pending_bytes == 100
    go.set()
    drain.close()
    assert seen == ["a", "d", "of no bytes"]


def test_it_ticks_while_nothing_comes() -> None:
    ticked = threading.Event()
    drain = Drain(lambda items: None, ticked.set, 100)
    assert ticked.wait(10)
    drain.close()
