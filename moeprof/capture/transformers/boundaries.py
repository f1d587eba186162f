"""Standing around calls that a forward hook cannot see: `generate`, and compiled forwards.

Hooks on a compiled model are part of what was compiled, so where a step begins and ends has to be
noticed outside of it.
"""

from __future__ import annotations

import functools
import inspect
import types
import weakref
from collections.abc import Callable
from typing import Any

Around = Callable[[Callable[..., Any], Any, Any], Any]  # (original, args, kwargs) -> its result
MISSING = object()


def wrap_method(owner: Any, name: str, around: Around) -> Callable[[], None]:
    """Let `around(original, args, kwargs)` stand for `owner.name`; returns what restores it.

    `owner` is an object, of which only the instance changes, or a class. It is left as found, and
    what stands there keeps no object alive that its user has let go.
    """
    original = getattr(owner, name, None)
    if not callable(original):
        return lambda: None
    before = vars(owner).get(name, MISSING)
    stand_in = _stand_in(original, around)
    setattr(owner, name, stand_in)
    owned = weakref.ref(owner)
    del owner

    def restore() -> None:
        owner = owned()
        if owner is None or vars(owner).get(name) is not stand_in:
            return  # someone else replaced it meanwhile: theirs stays
        if before is MISSING:
            delattr(owner, name)
        else:
            setattr(owner, name, before)

    return restore


def _stand_in(original: Callable[..., Any], around: Around) -> Callable[..., Any]:
    if not isinstance(original, types.MethodType):

        @functools.wraps(original)
        def function(*args: Any, **kwargs: Any) -> Any:
            return around(original, args, kwargs)

        return function
    # It lives on the object that it is bound to: to hold on to both would be a cycle.
    unbound, bound_to = original.__func__, weakref.ref(original.__self__)

    @functools.wraps(unbound)
    def method(*args: Any, **kwargs: Any) -> Any:
        return around(types.MethodType(unbound, bound_to()), args, kwargs)

    method.__signature__ = inspect.signature(original)  # type: ignore[attr-defined]
    return method
