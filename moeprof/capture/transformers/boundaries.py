"""Standing around calls that a forward hook cannot see: `generate`, and compiled forwards.

Hooks on a compiled model are part of what was compiled, so where a step begins and ends has to be
noticed outside of it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

Around = Callable[[Callable[..., Any], Any, Any], Any]  # (original, args, kwargs) -> its result
MISSING = object()


def wrap_method(owner: Any, name: str, around: Around) -> Callable[[], None]:
    """Let `around(original, args, kwargs)` stand for `owner.name`; returns what restores it.

    `owner` is an object, of which only the instance changes, or a class. It is left as found.
    """
    original = getattr(owner, name, None)
    if not callable(original):
        return lambda: None
    before = vars(owner).get(name, MISSING)

    @functools.wraps(original)
    def stand_in(*args: Any, **kwargs: Any) -> Any:
        return around(original, args, kwargs)

    setattr(owner, name, stand_in)

    def restore() -> None:
        if vars(owner).get(name) is not stand_in:
            return  # someone else replaced it meanwhile: theirs stays
        if before is MISSING:
            delattr(owner, name)
        else:
            setattr(owner, name, before)

    return restore
