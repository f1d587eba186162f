"""One prompt to the server and its answer back, in a thread of its own."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from moeprof.capture.http import HttpClient, HttpError, parse_json
from moeprof.capture.prompts import Prompt
from moeprof.capture.server.answers import Answered, AnswerError, answered
from moeprof.capture.server.asking import Asking, Engine, Served
from moeprof.errors import MoeprofError
from moeprof.model import MoEModel
from moeprof.trace.formats.block import Findings

RETRY_S = (0.5, 2.0, 5.0)  # waits before a request that cannot have been taken is sent again
_QUOTE_CHARS = 12  # so many of a prompt in a message would show it


@dataclass(frozen=True)
class Asker:
    """Puts one prompt to the server, in a thread of its own. Never raises."""

    client: HttpClient
    engine: Engine
    asking: Asking
    served: Served
    model: MoEModel
    prompts: Sequence[Prompt]
    retries: int
    keep_cached: bool
    _ended: threading.Event = field(default_factory=threading.Event)

    def ask(self, number: int) -> tuple[list[Answered], Findings] | MoeprofError:
        """What came of prompt `number`."""
        try:
            document = self._document(number)
            found = Findings()
            return answered(
                document, self.engine, self.asking, self.model, found, keep_cached=self.keep_cached
            ), found
        except MoeprofError as error:
            return error
        except Exception as error:  # of ours: a prompt that fails must not end the others
            return AnswerError(f"{type(error).__name__} in reading the answer")

    def end(self) -> None:
        """End what runs; what is asked from now on fails."""
        self._ended.set()
        self.client.cancel()

    def _document(self, number: int) -> Any:
        text = self.prompts[number].text
        path, body = self.engine.request(self.served, self.asking, text, number)
        for wait_s in (*RETRY_S[: self.retries], None):
            try:
                return parse_json(self.client.url + path, self.client.read("POST", path, body))
            except HttpError as error:
                if wait_s is None or not error.unsent:
                    raise _without_quotes(error, text) from None
                self._ended.wait(wait_s)
        raise AssertionError  # the last try returns or raises


def _without_quotes(error: HttpError, text: str) -> HttpError:
    """The same error; the server's words are left out if they hold a piece of the prompt."""
    piece = _QUOTE_CHARS
    said = error.said
    quotes = text in said or any(said[i : i + piece] in text for i in range(len(said) - piece + 1))
    return error.without_words() if said and quotes else error
