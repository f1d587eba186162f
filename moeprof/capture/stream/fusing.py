"""Tensors that the checkpoint keeps apart and the model fuses, each straight to its place.

What transformers' converters do is told from their operations (`core_model_loading`): stacking one
matrix an expert, and laying matrices row after row, move bytes and change none.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from moeprof.capture.stream.parts import Fill, Source, fills


def fills_of_many(
    converter: Any, found: Sequence[Sequence[Source]], target: str, shape: Sequence[int]
) -> Iterator[Fill]:
    """Steps that put tensors, `found` by source pattern, to their places in `target`.

    None where `converter` does more to them, or they do not make up `shape`.
    """
    if _only_stacks(converter) and _stack_to(shape, found):
        for expert, matrices in enumerate(zip(*found, strict=True)):
            yield from _fill_rows(target, matrices, (expert,))
    elif _only_joins(converter) and _join_to(shape, found):
        yield from _fill_rows(target, [tensor for (tensor,) in found])


def _only_stacks(converter: Any) -> bool:
    """Does it make one tensor, experts stacked, what each has of its own laid row after row?"""
    from transformers.core_model_loading import Concatenate, MergeModulelist

    first, *more = converter.operations
    joins = [op for op in more if isinstance(op, Concatenate) and op.dim == 1]
    stacks = isinstance(first, MergeModulelist) and first.dim == 0
    return stacks and len(converter.target_patterns) == 1 and len(more) == len(joins) < 2


def _only_joins(converter: Any) -> bool:
    """Does it make one tensor, others laid row after row?"""
    from transformers.core_model_loading import Concatenate

    first, *more = converter.operations
    joins = isinstance(first, Concatenate) and first.dim == 0
    return joins and len(converter.target_patterns) == 1 and not more


def _stack_to(shape: Sequence[int], found: Sequence[Sequence[Source]]) -> bool:
    """Do matrices of every expert, by pattern, make up `shape`?"""
    experts, *of_one = shape
    return all(len(tensors) == experts for tensors in found) and all(
        _join_to(of_one, [[tensor] for tensor in matrices]) for matrices in zip(*found, strict=True)
    )


def _join_to(shape: Sequence[int], found: Sequence[Sequence[Source]]) -> bool:
    """Do tensors, one a pattern, make up `shape` when they are laid row after row?"""
    shapes = [tensor.shape for tensors in found for tensor in tensors]
    return (
        len(shapes) == len(found)
        and all(own and own[1:] == tuple(shape[1:]) for own in shapes)
        and sum(own[0] for own in shapes) == shape[0]
    )


def _fill_rows(
    target: str, tensors: Sequence[Source], index: tuple[int, ...] = ()
) -> Iterator[Fill]:
    row = 0
    for tensor in tensors:
        rows = slice(row, row := row + tensor.shape[0])
        yield from fills(tensor, target, (*index, rows))
