"""The model without its weights, into which one part at a time is read.

It is built on the meta device with the class that transformers has for it, and its tensors come by
transformers' own conversion (`core_model_loading`, `conversion_mapping`): renamed keys, and experts
that the checkpoint keeps apart and the model fuses. Experts are converted a few at a time, so that
a layer takes little more memory than its weights.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moeprof.capture.stream.checkpoint import StoredTensor
from moeprof.capture.stream.quantized import DecodedTensor
from moeprof.capture.stream.reading import fresh_bytes, read_all
from moeprof.capture.transformers.run import torch_threads
from moeprof.errors import InputError

if TYPE_CHECKING:
    import torch

GROUP = 2  # experts that are converted together: few, so that what is copied is still cached
READERS = 4  # threads in which transformers reads tensors (core_model_loading.GLOBAL_WORKERS)


@dataclass(frozen=True)
class _Entry:
    """Where a tensor of the checkpoint goes."""

    key: str
    target: str  # the first of the model's tensors it becomes part of
    pattern: str | None  # of the converter that takes it, None where it is only renamed


def build_skeleton(config: Any, kind: Any, dtype: torch.dtype, **options: Any) -> Any:
    """The model of auto class `kind` without memory for its weights, in evaluation mode."""
    import torch
    from transformers import initialization

    with torch.device("meta"), initialization.no_init_weights():
        return kind.from_config(config, dtype=dtype, **options).eval()


class Skeleton:
    """`model`, on the meta device, and the checkpoint that its parts are read from."""

    def __init__(
        self,
        model: torch.nn.Module,
        tensors: Mapping[str, StoredTensor | DecodedTensor],
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        from transformers.conversion_mapping import get_model_conversion_mapping

        self.model: Any = model
        self.device = device
        self.cached: Collection[tuple[Path, int]] = ()  # what was read ahead, for `read_all`
        self._tensors = tensors
        self._dtype = dtype
        self._mapping = get_model_conversion_mapping(self.model)
        self._meta = self.model.state_dict()
        self._entries = [self._entry(key) for key in tensors]

    def stored(self, prefix: str, but: str | None = None) -> list[StoredTensor]:
        """What is read for the part of the model at `prefix`, without what stands below `but`."""
        tensors = (self._tensors[entry.key] for entry in self._of(prefix, but))
        return [part for tensor in tensors for part in tensor.parts]

    def nbytes(self, prefix: str, but: str | None = None) -> int:
        """Bytes that the part takes in memory."""
        names = (name for name in self._meta if _is_in(name, prefix, but))
        return sum(self._meta[name].nbytes for name in names)

    def working_bytes(self, prefix: str, but: str | None = None) -> int:
        """Bytes that decoding the part takes meanwhile: transformers reads a few at a time."""
        tensors = (self._tensors[entry.key] for entry in self._of(prefix, but))
        return sum(sorted((tensor.working_bytes for tensor in tensors), reverse=True)[:READERS])

    def load(self, prefix: str, but: str | None = None) -> None:
        """Read the part. InputError where the checkpoint lacks a tensor or has another shape."""
        entries = self._of(prefix, but)
        merged: dict[str, list[_Entry]] = defaultdict(list)
        whole = []
        for entry in entries:
            if entry.pattern in self._merging:
                merged[entry.target].append(entry)
            else:
                whole.append(entry)
        with torch_threads(1):  # conversion copies: threads that share that wait for each other
            for target, parts in merged.items():
                if not self._merge(target, parts):
                    whole += parts
            self._convert(whole)
        self._make_buffers(prefix, but)
        self._check_complete(prefix, but)

    @contextmanager
    def loaded(self, prefix: str) -> Iterator[None]:
        """The part, for as long as the body runs."""
        part = self.model.get_submodule(prefix)
        before = [
            (module._parameters, dict(module._parameters), module._buffers, dict(module._buffers))
            for module in part.modules()
        ]
        try:
            self.load(prefix)
            yield
        finally:
            for parameters, old_parameters, buffers, old_buffers in before:
                parameters.update(old_parameters)
                buffers.update(old_buffers)

    @cached_property
    def _merging(self) -> dict[str, Any]:
        """By source pattern, the converters that begin by stacking one tensor an expert."""
        from transformers.core_model_loading import MergeModulelist, WeightConverter

        return {
            pattern: converter
            for converter in self._mapping
            if isinstance(converter, WeightConverter)
            and isinstance(converter.operations[0], MergeModulelist)
            and converter.operations[0].dim == 0
            for pattern in converter.source_patterns
        }

    def _entry(self, key: str) -> _Entry:
        from transformers.core_model_loading import (
            WeightConverter,
            WeightRenaming,
            rename_source_key,
        )

        renamings = [entry for entry in self._mapping if isinstance(entry, WeightRenaming)]
        converters = [entry for entry in self._mapping if isinstance(entry, WeightConverter)]
        prefix = self.model.base_model_prefix
        target, pattern = rename_source_key(key, renamings, converters, prefix, self._meta)
        if target not in self._meta and key in self._meta:  # it should not have been renamed
            target, pattern = rename_source_key(key, [], [], prefix, self._meta)
        return _Entry(key, target, pattern)

    def _of(self, prefix: str, but: str | None) -> list[_Entry]:
        return [entry for entry in self._entries if _is_in(entry.target, prefix, but)]

    def _merge(self, target: str, entries: Iterable[_Entry]) -> bool:
        """Fill the fused tensors that `entries` make up; False if they cannot be made in parts."""
        from transformers.core_model_loading import dot_natural_key

        by_pattern: dict[str, list[str]] = defaultdict(list)
        for entry in sorted(entries, key=lambda entry: dot_natural_key(entry.key)):
            by_pattern[str(entry.pattern)].append(entry.key)
        experts = len(next(iter(by_pattern.values())))
        if any(len(keys) != experts for keys in by_pattern.values()):
            return False
        return self._stack(target, by_pattern) or self._merge_groups(target, by_pattern, experts)

    def _stack(self, target: str, keys: Mapping[str, list[str]]) -> bool:
        """Read every expert to its place in the fused tensor; False if it takes more than that."""
        import torch

        converter, meta = self._merging[next(iter(keys))], self._meta[target]
        found = [
            [self._tensors[name] for name in keys.get(p, ())] for p in converter.source_patterns
        ]
        stored = [[t for t in tensors if isinstance(t, StoredTensor)] for tensors in found]
        plain = _only_stacks(converter) and _stack_to(meta, stored)
        if not plain or self.device.type != "cpu":
            return False
        fused = torch.from_numpy(fresh_bytes(meta.nbytes)).view(meta.dtype).view(meta.shape)
        wanted, row = [], 0
        for tensors in stored:
            rows = tensors[0].shape[0]
            for expert, tensor in enumerate(tensors):
                place = fused[expert, row : row + rows].reshape(-1).view(torch.uint8)
                wanted.append((tensor.file, tensor.start, place.numpy()))
            row += rows
        read_all(wanted, self.cached)
        self._set(target, fused)
        return True

    def _merge_groups(self, target: str, by_pattern: Mapping[str, list[str]], experts: int) -> bool:
        import torch

        fused: dict[str, torch.Tensor] = {}
        for start in range(0, experts, GROUP):
            some = {pattern: keys[start : start + GROUP] for pattern, keys in by_pattern.items()}
            for name, part in self._merged(target, some).items():
                meta = self._meta.get(name)
                if meta is None or meta.shape != (experts, *part.shape[1:]):
                    return False  # a tensor is lacking, or experts do not stay apart
                if name not in fused:
                    fused[name] = torch.empty_like(meta, device=self.device)
                fused[name][start : start + GROUP].copy_(part)
        for name, value in fused.items():
            self._set(name, value)
        return True

    def _merged(self, target: str, keys: Mapping[str, list[str]]) -> dict[str, torch.Tensor]:
        """By name, what transformers makes of the tensors of some experts, by source pattern."""
        from transformers.core_model_loading import spawn_materialize

        converter = copy.deepcopy(self._merging[next(iter(keys))])
        dtype = self._meta[target].dtype
        for pattern, names in keys.items():
            for name in names:
                read = spawn_materialize(None, self._tensors[name], self.device, dtype)
                converter.add_tensor(target, name, pattern, read)
        made = converter.convert(target, model=self.model, config=self.model.config)
        return {name: v[0] if isinstance(v, list) else v for name, v in made.items()}

    def _set(self, name: str, value: torch.Tensor) -> None:
        import torch

        path, _, leaf = name.rpartition(".")
        module = self.model.get_submodule(path)
        if leaf not in module._buffers:
            value = torch.nn.Parameter(value, requires_grad=False)
        value._is_hf_initialized = True  # or it would be initialized again
        setattr(module, leaf, value)

    def _convert(self, entries: Iterable[_Entry]) -> None:
        from transformers.core_model_loading import convert_and_load_state_dict_in_model
        from transformers.modeling_utils import LoadStateDictConfig

        state = {entry.key: self._tensors[entry.key] for entry in entries}
        settings = LoadStateDictConfig(
            device_map={"": self.device},
            dtype=self._dtype,
            dtype_plan=self.model._get_dtype_plan(self._dtype),
            weight_mapping=self._mapping,
        )
        with _without_bars():
            info, _ = convert_and_load_state_dict_in_model(self.model, state, settings)
        if info.mismatched_keys:
            name, found, wanted = sorted(info.mismatched_keys)[0]
            raise InputError(
                f"{name} has shape {tuple(found)} in the checkpoint, the model wants "
                f"{tuple(wanted)}: do config.json and the weights belong together?"
            )
        if info.conversion_errors:
            name = sorted(info.conversion_errors)[0]
            raise InputError(f"{name}: transformers cannot convert it from this checkpoint")

    def _make_buffers(self, prefix: str, but: str | None) -> None:
        """Buffers that no checkpoint holds, computed as transformers does after loading."""
        import torch

        for path, module in self.model.get_submodule(prefix).named_modules(prefix=prefix):
            computed = module._non_persistent_buffers_set
            if not computed or not _is_in(f"{path}.", prefix, but):
                continue
            for name in computed:
                buffer = module._buffers.get(name)
                if buffer is not None and buffer.is_meta:
                    module._buffers[name] = torch.empty_like(buffer, device=self.device)
            with torch.no_grad():
                self.model._init_weights(module)

    def _check_complete(self, prefix: str, but: str | None) -> None:
        part = self.model.get_submodule(prefix)
        for name, tensor in part.state_dict(prefix=f"{prefix}." if prefix else "").items():
            if tensor.is_meta and _is_in(name, prefix, but):
                raise InputError(
                    f"the checkpoint has no tensor for {name}: is it whole, and is config.json its "
                    "own?"
                )


def _only_stacks(converter: Any) -> bool:
    """Does it make one tensor, experts stacked, what each has of its own laid row after row?"""
    from transformers.core_model_loading import Concatenate

    more = converter.operations[1:]  # the first stacks, see `_merging`
    joins = [op for op in more if isinstance(op, Concatenate) and op.dim == 1]
    return len(converter.target_patterns) == 1 and len(more) == len(joins) < 2


def _stack_to(meta: torch.Tensor, stored: Sequence[Sequence[StoredTensor]]) -> bool:
    """Do matrices of every expert, laid so, have the shape and dtype of `meta`?"""
    from safetensors.torch import _TYPES

    experts, rows, *columns = meta.shape
    heights = [tensors[0].shape[0] for tensors in stored if tensors]
    return (
        len(heights) == len(stored)
        and sum(heights) == rows
        and all(
            len(tensors) == experts
            and _TYPES[tensor.dtype] == meta.dtype
            and tensor.shape == (height, *columns)
            for tensors, height in zip(stored, heights, strict=True)
            for tensor in tensors
        )
    )


def _is_in(name: str, prefix: str, but: str | None) -> bool:
    return (not prefix or name.startswith(f"{prefix}.")) and not (
        but is not None and name.startswith(f"{but}.")
    )


@contextmanager
def _without_bars() -> Iterator[None]:
    """transformers draws a bar for every part that is loaded."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
