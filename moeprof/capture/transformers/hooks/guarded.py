"""Methods that the model's thread calls: what fails in them costs the recording, not the model."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Concatenate, ParamSpec, Protocol, TypeVar


class Fails(Protocol):
    """Knows what to do about an error of ours."""

    def fail(self, error: Exception, doing: str) -> None:
        """`doing` failed."""


P = ParamSpec("P")
T = TypeVar("T")
S = TypeVar("S", bound=Fails)


def guarded(
    doing: str,
) -> Callable[[Callable[Concatenate[S, P], T]], Callable[Concatenate[S, P], T | None]]:
    """`doing` fails at the cost of the recording: the method returns None then."""

    def decorate(
        method: Callable[Concatenate[S, P], T],
    ) -> Callable[Concatenate[S, P], T | None]:
        @functools.wraps(method)
        def guard(self: S, /, *args: P.args, **kwargs: P.kwargs) -> T | None:
            try:
                return method(self, *args, **kwargs)
            except Exception as error:
                self.fail(error, doing)
                return None

        return guard

    return decorate
