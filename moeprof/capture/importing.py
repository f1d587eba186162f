"""Doing something once a module has been imported, without importing it before its time.

A script may set environment variables before it imports torch, or never import it at all.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from importlib.machinery import ModuleSpec
from types import ModuleType

from moeprof.capture.failure import logger


def when_imported(stack: ExitStack, name: str, action: Callable[[], object]) -> None:
    """Call `action` as soon as module `name` has been imported, now if it has been.

    If that has not happened when `stack` ends, it never will.
    """
    if name in sys.modules:
        _attempt(action, name)
        return
    finder = _Finder(name, action)
    sys.meta_path.insert(0, finder)
    stack.callback(finder.remove)


class _Finder:
    """Finds one module as it would be found without us, and lets its loader call `action`."""

    def __init__(self, name: str, action: Callable[[], object]) -> None:
        self._name = name
        self._action = action

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The module's own spec."""
        if name != self._name:
            return None
        self.remove()  # or the next line would ask us again
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            self._follow(spec)
        return spec

    def remove(self) -> None:
        """Find nothing more."""
        if self in sys.meta_path:
            sys.meta_path.remove(self)

    def _follow(self, spec: ModuleSpec) -> None:
        loader = spec.loader
        assert loader is not None
        execute = loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            _attempt(self._action, self._name)

        loader.exec_module = exec_module  # type: ignore[method-assign]


def _attempt(action: Callable[[], object], name: str) -> None:
    try:
        action()
    except Exception as error:  # whatever has changed in there
        logger.error("nothing of %s is recorded: %s: %s", name, type(error).__name__, error)
