"""A GGUF file written byte by byte, after the format's specification: headers, and as much data."""

from __future__ import annotations

import struct
from typing import Any

from moeprof.model.gguf import BLOCKS

F32, Q4_K, Q8_0 = 0, 12, 8
_U32, _F32, _BOOL, _STRING, _ARRAY = 4, 6, 7, 8, 9


def text(value: str) -> bytes:
    raw = value.encode()
    return struct.pack("<Q", len(raw)) + raw


def value(given: Any) -> tuple[int, bytes]:
    """Type and bytes of a metadata value."""
    if isinstance(given, bool):
        return _BOOL, struct.pack("<?", given)
    if isinstance(given, int):
        return _U32, struct.pack("<I", given)
    if isinstance(given, float):
        return _F32, struct.pack("<f", given)
    if isinstance(given, str):
        return _STRING, text(given)
    parts = [value(each) for each in given]
    kind = parts[0][0] if parts else _U32
    return _ARRAY, struct.pack("<IQ", kind, len(parts)) + b"".join(raw for _, raw in parts)


def gguf_bytes(metadata: dict[str, Any], tensors: dict[str, tuple[tuple[int, ...], int]]) -> bytes:
    """A file, version 3, of these keys and of tensors (shape, ggml type) that hold zeros."""
    head = struct.pack("<4sIQQ", b"GGUF", 3, len(tensors), len(metadata))
    for key, given in metadata.items():
        kind, raw = value(given)
        head += text(key) + struct.pack("<I", kind) + raw
    size = 0
    for name, (shape, kind) in tensors.items():
        head += text(name) + struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
        head += struct.pack("<IQ", kind, size)
        values, nbytes = BLOCKS.get(kind, (1, 1))
        count = 1
        for dimension in shape:
            count *= dimension
        size += -(-(count // values * nbytes) // 32) * 32
    return head + b"\0" * (-len(head) % 32) + b"\0" * size


def moe(
    arch: str = "minimax-m3",
    layers: int = 3,
    dense: int = 1,
    kinds: tuple[int, int] = (Q4_K, Q8_0),
    **keys: Any,
) -> tuple[dict[str, Any], dict[str, tuple[tuple[int, ...], int]]]:
    """Keys and tensors of a model of 8 experts, top-2, 256 wide, experts of 512.

    `kinds` are the types of gate and up, and of down.
    """
    metadata = {
        "general.architecture": arch,
        "general.name": "tiny",
        f"{arch}.block_count": layers,
        f"{arch}.embedding_length": 256,
        f"{arch}.expert_count": 8,
        f"{arch}.expert_used_count": 2,
        f"{arch}.context_length": 4096,
        "tokenizer.ggml.tokens": [f"t{n}" for n in range(10)],
    }
    metadata |= {f"{arch}.{key.replace('__', '.')}": given for key, given in keys.items()}
    tensors: dict[str, tuple[tuple[int, ...], int]] = {"token_embd.weight": ((256, 10), F32)}
    for layer in range(layers):
        block = f"blk.{layer}"
        if layer < dense:
            tensors[f"{block}.ffn_down.weight"] = ((512, 256), F32)
            continue
        tensors[f"{block}.ffn_gate_inp.weight"] = ((256, 8), F32)
        for part in ("gate", "up"):
            tensors[f"{block}.ffn_{part}_exps.weight"] = ((256, 512, 8), kinds[0])
        tensors[f"{block}.ffn_down_exps.weight"] = ((512, 256, 8), kinds[1])
    return metadata, tensors
