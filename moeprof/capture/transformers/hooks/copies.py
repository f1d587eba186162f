"""Copies and pickles of a model that is being recorded know nothing of the recording.

A hook is a function, which `copy.deepcopy` shares and `pickle` refuses: the copy's tokens would be
recorded as the model's, and saving it would fail. So our hooks are left out of a module's state.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from moeprof.capture.transformers.boundaries import wrap_method

HOOKS = ("_forward_hooks", "_forward_pre_hooks")
OF_A_HOOK = tuple(name + suffix for name in HOOKS for suffix in ("", "_with_kwargs"))

_open: list[Callable[[], None]] = []  # what ends it, once for each recording


def keep_out_of_copies(stack: ExitStack) -> None:
    """Until `stack` ends, copies of modules are without our hooks."""
    import torch

    end = (lambda: None) if _open else wrap_method(torch.nn.Module, "__getstate__", _around)
    _open.append(end)
    stack.callback(_leave)


def _leave() -> None:
    end = _open.pop()
    if not _open:
        end()


def _around(get_state: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    state = get_state(*args, **kwargs)
    return without_ours(state) if isinstance(state, dict) else state


def without_ours(state: dict[str, Any]) -> dict[str, Any]:
    """The attributes of a module without what we put there; `state` itself stays."""
    ours = {key for name in HOOKS for key, hook in state.get(name, {}).items() if _is_ours(hook)}
    kept = {name: value for name, value in state.items() if not _is_ours(value)}
    for name in OF_A_HOOK if ours else ():
        if name in kept:
            items = ((key, value) for key, value in kept[name].items() if key not in ours)
            kept[name] = type(kept[name])(items)
    return kept


def _is_ours(value: Any) -> bool:
    """Whether `value` is a function that was defined in moeprof's capture."""
    module = str(getattr(value, "__globals__", {}).get("__name__"))
    return module.startswith("moeprof.capture.")
