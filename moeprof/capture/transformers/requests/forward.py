"""What one call of a model's forward says about its batch, read without touching the device."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from moeprof.capture.routing import HostCopy, copy_to_host

if TYPE_CHECKING:
    import torch


class PackedBatchError(Exception):
    """The forward packs several sequences into one row, and does not say which token is whose."""


@dataclass(frozen=True)
class Forward:
    """The arguments that matter, whether they came by position or by keyword."""

    rows: int
    columns: int
    device: torch.device
    input_ids: torch.Tensor | None  # [rows, columns]
    attention_mask: Any  # as it was given
    positions: torch.Tensor | None  # [rows or 1, columns]
    cache: Any  # the past_key_values object

    def padding_mask(self) -> torch.Tensor | None:
        """[rows, any] truth of "is a token"; None where nothing is said.

        Compilable caches are given 4-D masks, or a dict of them: the last query sees every token
        under full attention, so its row is the padding mask.
        """
        mask = self.attention_mask
        if isinstance(mask, Mapping):
            mask = mask.get("full_attention")
        if mask is None or mask.shape[0] != self.rows:
            return None
        if mask.ndim == 4:
            seen = mask[:, 0, -1, :]
            return seen == 0 if seen.is_floating_point() else seen
        return mask if mask.ndim == 2 else None

    def copy_mask(self, past: int, *, whole: bool) -> HostCopy | None:
        """The mask of the new columns, behind `past` cached ones; of these too if `whole`."""
        mask = self.padding_mask()
        if mask is None:
            return None
        if mask.shape[1] >= past + self.columns:
            return copy_to_host(mask[:, (0 if whole else past) : past + self.columns])
        return copy_to_host(mask) if mask.shape[1] == self.columns else None


def forward_parameters(model: torch.nn.Module) -> tuple[str, ...]:
    """Names of the positional parameters of `model.forward`."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(model.forward).parameters.values()
    return tuple(p.name for p in parameters if p.kind in kinds)


def read_forward(names: Sequence[str], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Forward:
    """The batch of a call `forward(*args, **kwargs)` whose positional parameters are `names`.

    Raises ValueError if there are no input tokens in it, PackedBatchError if they are packed.
    """
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    if given.get("cu_seq_lens_q") is not None:
        raise PackedBatchError
    ids, embeds = given.get("input_ids"), given.get("inputs_embeds")
    tokens = ids if ids is not None else embeds
    if tokens is None or tokens.ndim < 2:
        raise ValueError("the forward has neither input_ids nor inputs_embeds of [rows, columns]")
    rows, columns = int(tokens.shape[0]), int(tokens.shape[1])
    return Forward(
        rows=rows,
        columns=columns,
        device=tokens.device,
        input_ids=ids if ids is not None and ids.shape == (rows, columns) else None,
        attention_mask=given.get("attention_mask"),
        positions=_flat_positions(given.get("position_ids"), rows, columns),
        cache=given.get("past_key_values"),
    )


def cache_columns(cache: Any) -> int | None:
    """How many columns `cache` holds, None where only the device knows (a static cache)."""
    try:
        length = cache.get_seq_length()
    except (AttributeError, ValueError):
        return None
    return length if isinstance(length, int) else None


def cache_in_output(output: Any) -> Any:
    """The cache that a forward returned, or None."""
    if isinstance(output, tuple | list):
        return next((item for item in output if hasattr(item, "get_seq_length")), None)
    return getattr(output, "past_key_values", None)


def _flat_positions(positions: Any, rows: int, columns: int) -> Any:
    """Position ids of [rows or 1, columns]; those of several axes (images) are no place."""
    if positions is None or positions.ndim != 2 or positions.shape[1] != columns:
        return None
    return positions if positions.shape[0] in (1, rows) else None


def count_tokens(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
    """Tokens of a forward that could not be read, padding included; 0 if there is no telling."""
    for value in (kwargs.get("input_ids"), kwargs.get("inputs_embeds"), *args):
        shape: tuple[int, ...] = tuple(getattr(value, "shape", ()))
        if len(shape) >= 2:
            return shape[0] * shape[1]
    return 0
