"""The model without its weights, into which one part at a time is read.

It is built on the meta device with the class that transformers has for it, and its tensors come by
transformers' own conversion (`core_model_loading`, `conversion_mapping`): renamed keys, and experts
that the checkpoint keeps apart and the model fuses. Experts are converted a few at a time, so that
a layer takes little more memory than its weights.
"""

from __future__ import annotations

import copy
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moeprof.capture.stream.fusing import fills_of_many
from moeprof.capture.stream.parts import Entry, Fill, Part, Source, fills
from moeprof.errors import InputError

if TYPE_CHECKING:
    import torch

GROUP = 2  # experts that are converted together: few, so that what is copied is still cached


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
        tensors: Mapping[str, Source],
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        from transformers.conversion_mapping import get_model_conversion_mapping

        self.model: Any = model
        self.device = device
        self._tensors = tensors
        self._dtype = dtype
        self._mapping = get_model_conversion_mapping(self.model)
        self._meta = self.model.state_dict()
        entries = map(self._entry, tensors)
        self._entries = [entry for entry in entries if entry.target in self._meta]

    def nbytes(self, prefix: str, but: str | None = None) -> int:
        """Bytes that the part takes in memory."""
        names = (name for name in self._meta if _is_in(name, prefix, but))
        return sum(self._meta[name].nbytes for name in names)

    def part(self, prefix: str, but: str | None = None) -> Part:
        """What is read for the part of the model at `prefix`, without what stands below `but`."""
        by_target: dict[str, list[Entry]] = defaultdict(list)
        for entry in self._of(prefix, but):
            by_target[entry.target].append(entry)
        found: dict[str, list[Fill]] = {}
        rest: list[Entry] = []
        for target, entries in by_target.items():
            steps = list(self._fills(target, entries))
            if steps:
                found[target] = steps
            else:
                rest += entries
        return Part(
            prefix,
            but,
            {name: self._meta[name].to(self._loaded_dtype(name)) for name in found},
            sorted((step for steps in found.values() for step in steps), key=_place_on_disk),
            rest,
            sum(part.nbytes for e in self._of(prefix, but) for part in self._tensors[e.key].parts),
        )

    def load(self, part: Part, tensors: Mapping[str, torch.Tensor]) -> None:
        """Set `tensors`, which are filled, and read the rest of the part.

        InputError where the checkpoint lacks a tensor or has another shape.
        """
        for name, tensor in tensors.items():
            self._set(name, tensor)
        merged: dict[str, list[Entry]] = defaultdict(list)
        whole = []
        for entry in part.rest:
            if entry.pattern in self._merging:
                merged[entry.target].append(entry)
            else:
                whole.append(entry)
        for target, parts in merged.items():
            if not self._merge(target, parts):
                whole += parts
        if whole:
            self._convert(whole)
        self._make_buffers(part.prefix, part.but)
        self._check_complete(part.prefix, part.but)

    @contextmanager
    def restored(self, prefix: str) -> Iterator[None]:
        """The part is without its weights again once the body has run."""
        part = self.model.get_submodule(prefix)
        before = [
            (module._parameters, dict(module._parameters), module._buffers, dict(module._buffers))
            for module in part.modules()
        ]
        try:
            yield
        finally:
            for parameters, old_parameters, buffers, old_buffers in before:
                parameters.update(old_parameters)
                buffers.update(old_buffers)

    @cached_property
    def _converters(self) -> dict[str, Any]:
        """By source pattern, what is more than a change of name."""
        from transformers.core_model_loading import WeightConverter

        return {
            pattern: converter
            for converter in self._mapping
            if isinstance(converter, WeightConverter)
            for pattern in converter.source_patterns
        }

    @cached_property
    def _merging(self) -> dict[str, Any]:
        """Those of them that begin by stacking one tensor an expert."""
        from transformers.core_model_loading import MergeModulelist

        return {
            pattern: converter
            for pattern, converter in self._converters.items()
            if isinstance(first := converter.operations[0], MergeModulelist) and first.dim == 0
        }

    def _entry(self, key: str) -> Entry:
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
        return Entry(key, target, pattern)

    def _of(self, prefix: str, but: str | None) -> list[Entry]:
        return [entry for entry in self._entries if _is_in(entry.target, prefix, but)]

    def _fills(self, target: str, entries: Sequence[Entry]) -> Iterator[Fill]:
        """Steps that fill `target`, none where transformers has to convert it."""
        meta, pattern = self._meta[target], entries[0].pattern
        if pattern is None and len(entries) == 1:
            source = self._tensors[entries[0].key]
            if source.shape == meta.shape:
                yield from fills(source, target)
        elif pattern is not None:
            converter, keys = self._converters[pattern], _by_pattern(entries)
            found = [[self._tensors[k] for k in keys[p]] for p in converter.source_patterns]
            yield from fills_of_many(converter, found, target, meta.shape)

    def _loaded_dtype(self, target: str) -> torch.dtype:
        """What transformers would load the tensor as: some are kept in float32."""
        for pattern, dtype in self._kept.items():
            if pattern.search(target):
                return dtype
        found: torch.dtype = self._meta[target].dtype
        return found

    @cached_property
    def _kept(self) -> dict[re.Pattern[str], torch.dtype]:
        plan = self.model._get_dtype_plan(self._dtype)
        return {re.compile(glob.replace("*", ".*")): dtype for glob, dtype in plan.items()}

    def _merge(self, target: str, entries: Sequence[Entry]) -> bool:
        """Fill the fused tensors that `entries` make up; False if they cannot be made in parts."""
        by_pattern = _by_pattern(entries)
        experts = len(next(iter(by_pattern.values())))
        if any(len(keys) != experts for keys in by_pattern.values()):
            return False
        return self._merge_groups(target, by_pattern, experts)

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

    def _convert(self, entries: Iterable[Entry]) -> None:
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


def _by_pattern(entries: Iterable[Entry]) -> dict[str, list[str]]:
    """Keys of the checkpoint by the converter's pattern, in the order of experts."""
    from transformers.core_model_loading import dot_natural_key

    found: dict[str, list[str]] = defaultdict(list)
    for entry in sorted(entries, key=lambda entry: dot_natural_key(entry.key)):
        found[str(entry.pattern)].append(entry.key)
    return found


def _place_on_disk(fill: Fill) -> tuple[Path, int]:
    first = fill.source.parts[0]
    return first.file, first.start


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
