"""Running a Python script as `python SCRIPT ARGS` would, and coming back when it is done."""

from __future__ import annotations

import importlib.machinery
import os
import signal
import sys
import threading
import types
from collections.abc import Iterator, Sequence
from concurrent.futures.thread import _threads_queues
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from moeprof.errors import InputError

INTERRUPTED = 128 + signal.SIGINT
_OURS = str(Path(__file__).parents[1]) + os.sep


def run_script(script: str | Path, arguments: Sequence[str]) -> int:
    """Run `script` as `__main__` and return the exit code that Python would end with.

    Its uncaught errors are shown as Python shows them, without our frames. Threads that Python
    would wait for are waited for. `sys.argv`, `sys.path` and `__main__` stay the script's.

    Raises InputError if there is no such file.
    """
    path = Path(script)
    if not path.is_file():
        raise InputError(f"{path}: no such file; capture run takes a Python script")
    main = _main_module(path.absolute())
    sys.argv = [str(script), *arguments]
    if not sys.flags.safe_path:
        sys.path[0] = str(path.resolve().parent)
    sys.modules["__main__"] = main
    return _exit_code(main, path.absolute())


def _main_module(path: Path) -> types.ModuleType:
    main = types.ModuleType("__main__")
    main.__dict__.update(
        __file__=str(path),
        __builtins__=__builtins__,
        __cached__=None,
        __loader__=importlib.machinery.SourceFileLoader("__main__", str(path)),
    )
    return main


def _exit_code(main: types.ModuleType, path: Path) -> int:
    try:
        exec(compile(path.read_bytes(), str(path), "exec"), main.__dict__)
        _wait_for_threads()
    except SystemExit as end:
        return _code_of(end)
    except BaseException as error:
        _show(error)
        return INTERRUPTED if isinstance(error, KeyboardInterrupt) else 1
    return 0


def _code_of(end: SystemExit) -> int:
    if end.code is None or isinstance(end.code, int):
        return (end.code or 0) & 0xFF
    sys.stderr.write(f"{end.code}\n")
    return 1


def _show(error: BaseException) -> None:
    trace = _without_ours(error.__traceback__)
    sys.excepthook(type(error), error.with_traceback(trace), trace)


def _without_ours(trace: types.TracebackType | None) -> types.TracebackType | None:
    """The same traceback without the frames of this package, that of `exec` above among them."""
    if trace is None:
        return None
    rest = _without_ours(trace.tb_next)
    if trace.tb_frame.f_code.co_filename.startswith(_OURS):
        return rest
    return types.TracebackType(rest, trace.tb_frame, trace.tb_lasti, trace.tb_lineno)


def _wait_for_threads() -> None:
    """Python does not end before these; workers of executors wait for work, and are not asked."""
    for thread in threading.enumerate():
        started_by_user = thread is not threading.current_thread() and not thread.daemon
        if started_by_user and thread not in _threads_queues:
            thread.join()


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """While open, SIGTERM and SIGHUP do not kill the process but act as `sys.exit` would.

    The exit code is 128 and the signal's number. Forked children die of them as ever: a handler in
    Python, which waits for its turn, would keep one that waits for a lock alive.
    """

    def end(number: int, frame: Any) -> None:
        raise SystemExit(128 + number)

    def restore() -> None:
        for number in handled:
            if signal.getsignal(number) is end:
                signal.signal(number, signal.SIG_DFL)

    numbers = (signal.SIGTERM, signal.SIGHUP)
    handled = [number for number in numbers if signal.getsignal(number) is signal.SIG_DFL]
    for number in handled:
        signal.signal(number, end)
    os.register_at_fork(after_in_child=restore)
    try:
        yield
    finally:
        restore()


@contextmanager
def signals_held_off() -> Iterator[None]:
    """While open, signals that ask to end are ignored: what runs is the end already."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not None:  # None: someone's who is not Python
                signal.signal(number, handler)
