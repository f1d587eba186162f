"""What switches recording off: its end, or the first error of ours, which is logged, once."""

from __future__ import annotations

import contextlib
import logging
import threading
import traceback

logger = logging.getLogger("moeprof")


class FailureLatch:
    """Remembers the first failure. Safe to trip from any thread, any number of times."""

    def __init__(self) -> None:
        self.message: str | None = None
        self.ended = False  # as planned: what comes now is outside of the recording
        self._lock = threading.Lock()

    @property
    def tripped(self) -> bool:
        """Whether recording has been switched off."""
        return self.ended or self.message is not None

    def end(self) -> None:
        """Switch recording off because it has reached its end."""
        self.ended = True

    def trip(self, error: BaseException, doing: str) -> None:
        """Switch recording off because `doing` failed. The message never quotes the error's
        arguments, which may hold text of a prompt.
        """
        message = f"recording stopped: {doing} failed: {_describe(error)}"
        with self._lock:
            if self.tripped:
                return
            self.message = message
        with contextlib.suppress(Exception):  # handlers are the user's, and may raise
            logger.error("%s; the model goes on unrecorded", message)


def _describe(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    frames = traceback.extract_tb(error.__traceback__)
    place = f" at {frames[-1].name}:{frames[-1].lineno}" if frames else ""
    return type(error).__name__ + place
