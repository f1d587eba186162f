"""What llama.cpp writes while it works: kept from the terminal, errors as reasons."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_ERROR_LEVEL = 4  # GGML_LOG_LEVEL_ERROR


class Messages:
    """llama.cpp's messages, of which the errors are kept and nothing is shown."""

    def __init__(self, c: Any) -> None:
        self._c = c
        self._errors: list[str] = []
        self._keep = c.llama_log_callback(self._take)

    @property
    def reason(self) -> str:
        """What it says of the failure, as one line: the last that calls itself an error."""
        lines = [" ".join(line.split()) for line in "".join(self._errors).split("\n")]
        said = [line for line in lines if line]
        errors = [line for line in said if "error" in line]
        return (errors or said or ["it does not say why"])[-1][:300]

    @contextmanager
    def caught(self) -> Iterator[None]:
        """Messages come here until the body ends."""
        self._errors.clear()
        before, state = self._c.llama_log_callback(), ctypes.c_void_p()
        self._c.llama_log_get(ctypes.byref(before), ctypes.byref(state))
        self._c.llama_log_set(self._keep, None)
        try:
            yield
        finally:
            self._c.llama_log_set(before, state)

    def _take(self, level: int, text: bytes, state: int | None) -> None:
        if level == _ERROR_LEVEL and len(self._errors) < 100:
            self._errors.append(text.decode(errors="replace"))
