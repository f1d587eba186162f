"""A program that runs under ours as if it ran alone: same terminal, signals handed on."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Mapping, Sequence
from typing import Any, Self

from moeprof.errors import InputError

# What a terminal sends to all of its foreground group, so to the child without our help.
_OF_TERMINAL = {signal.SIGINT, signal.SIGQUIT}
_HANDED_ON = {*_OF_TERMINAL, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2}


def run_child(
    command: Sequence[str], environment: Mapping[str, str], *, stdout: int | None = None
) -> int:
    """Run `command` to its end and return its exit code; 128 and the number if a signal ended it.

    Signals that we get meanwhile go to it. `stdout` is a file descriptor, None for ours.
    Raises InputError if it cannot be started.
    """
    with _Relay() as relay:
        try:
            child = subprocess.Popen(command, env=dict(environment), stdout=stdout)
        except OSError as error:
            raise InputError(f"{command[0]}: cannot be started: {error.strerror}") from None
        relay.attach(child)
        code = child.wait()
    return code if code >= 0 else 128 - code


class _Relay:
    """While open, signals go to a child, also those that came while it was being made.

    Handlers, not a mask of blocked signals: a signal would go to some thread of a library that
    does not block it, and end us. One that is ignored (nohup) stays so, for the child too.
    """

    def __init__(self) -> None:
        self._child: subprocess.Popen[bytes] | None = None
        self._early: list[int] = []
        self._before: dict[int, Any] = {}

    def attach(self, child: subprocess.Popen[bytes]) -> None:
        """From now on signals go to `child`."""
        self._child = child
        for number in self._early:
            child.send_signal(number)

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # others may set no handler
            mine = [n for n in _HANDED_ON if signal.getsignal(n) != signal.SIG_IGN]
            self._before = {number: signal.signal(number, self._hand_on) for number in mine}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _hand_on(self, number: int, frame: Any) -> None:
        if number in _OF_TERMINAL and _in_foreground():
            return
        if self._child is None:
            self._early.append(number)
        else:
            self._child.send_signal(number)


def _in_foreground() -> bool:
    """Whether our terminal, if we have one, sends its signals to our process group."""
    try:
        terminal = os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY)
    except OSError:
        return False
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    except OSError:
        return False
    finally:
        os.close(terminal)
