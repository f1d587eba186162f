"""Noticing every transformers model of a process just before it runs for the first time.

That is when its device is known, and early enough: what `torch.compile` has compiled listens to
no hooks that come later. Only classes are changed, never a model.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

from moeprof.capture.failure import logger
from moeprof.capture.importing import when_imported
from moeprof.capture.transformers.boundaries import wrap_method
from moeprof.errors import MoeprofError


class ModelWatch:
    """Shows each model, the outermost first, to `meet` once; that says whether it took it.

    What is inside of a model that was taken belongs to it and is not shown. `meet` may raise:
    that is logged, and the model runs.
    """

    def __init__(self, stack: ExitStack, meet: Callable[[Any], bool]) -> None:
        self._stack = stack
        self._meet = meet
        self._met: weakref.WeakSet[Any] = weakref.WeakSet()
        self._taken: weakref.WeakSet[Any] = weakref.WeakSet()
        self._lock = threading.RLock()
        self._base: Any = None  # transformers.PreTrainedModel
        self.saw_models = False
        when_imported(stack, "transformers.modeling_utils", self._watch_calls)
        when_imported(stack, "transformers.generation.utils", self._watch_generation)

    def _watch_calls(self) -> None:
        import torch
        from transformers.modeling_utils import PreTrainedModel

        self._base = PreTrainedModel
        self._stack.callback(wrap_method(PreTrainedModel, "__call__", self._around_call))
        self._stack.callback(wrap_method(torch, "compile", self._around_compile))

    def _watch_generation(self) -> None:
        from transformers.generation.utils import GenerationMixin

        wrap = (("generate", self._around_generate), ("init_continuous_batching", self._around))
        for name, around in wrap:
            self._stack.callback(wrap_method(GenerationMixin, name, around))
        self._generate = GenerationMixin.generate

    def _around_call(self, call: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        import torch

        if not torch.compiler.is_compiling():
            self._notice(args[0])
        return call(*args, **kwargs)

    def _around(self, call: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        self._notice(args[0])
        return call(*args, **kwargs)

    def _around_generate(self, generate: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        model, *rest = args
        # What stands around the model's own `generate` now came too late for this call. A class
        # with a `generate` of its own that called us must not be called twice.
        if self._notice(model) and type(model).generate is self._generate:
            return model.generate(*rest, **kwargs)
        return generate(*args, **kwargs)

    def _around_compile(self, compile_: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        for module in _modules_of(args[0] if args else kwargs.get("model")):
            for inner in module.modules():
                self._notice(inner)
        return compile_(*args, **kwargs)

    def _notice(self, model: Any) -> bool:
        """Whether `model` was met just now, and taken."""
        if model in self._met or not isinstance(model, self._base or ()):
            return False
        with self._lock:
            if model in self._met:
                return False
            self._met.add(model)
            self.saw_models = True
            return self._take(model)

    def _take(self, model: Any) -> bool:
        try:
            inside = [m for m in model.modules() if isinstance(m, self._base) and m is not model]
            if any(inner in self._taken for inner in inside) or not self._meet(model):
                return False
            self._taken.add(model)
            self._met.update(inside)
            return True
        except Exception as error:
            # What is not ours may quote a prompt.
            reason = str(error) if isinstance(error, MoeprofError) else type(error).__name__
            logger.error("%s is not recorded: %s", _name(model), reason)
            return False


def _name(model: Any) -> str:
    return type(model).__name__


def _modules_of(target: Any) -> Iterator[Any]:
    """Modules that compiling `target` would compile: itself, its owner, what a function names."""
    import torch

    code = getattr(target, "__code__", None)
    found = [target, getattr(target, "__self__", None)]
    if code is not None:
        found += [cell.cell_contents for cell in target.__closure__ or () if _is_filled(cell)]
        found += [target.__globals__.get(name) for name in code.co_names]
    return (value for value in found if isinstance(value, torch.nn.Module))


def _is_filled(cell: Any) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:
        return False
