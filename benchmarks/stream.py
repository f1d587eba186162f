"""What does streaming a checkpoint of MiniMax-M3's shapes cost: disk, memory, seconds a layer?

    python benchmarks/stream.py [FOLDER] [--divide 2] [--tokens 1024] [--memory 20GiB]

Writes a checkpoint of random weights, one dense layer and two of experts, with every width of M3
divided by `--divide` (1: its true shapes, 32 GB), streams texts through it, and deletes it. Beside:
the same files read plainly from the same disk, and the peak of memory beside the budget. The
system's cache is not emptied between: files larger than memory are needed to see the disk.
"""

from __future__ import annotations

import argparse
import json
import os
import struct
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from moeprof.capture.layout import Layout
from moeprof.capture.stream.needs import resident_bytes
from moeprof.capture.stream.run import open_model, stream_sequences
from moeprof.capture.stream.sequences import TokenSequence
from moeprof.cli.limits import parse_bytes
from moeprof.model import presets

TEXT_LENGTH = 512
POOL_BYTES = 64 << 20


def main() -> None:
    """Write, read, stream, print, delete."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--divide", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--memory", default="20GiB")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=asked.folder) as name:
        folder = Path(name) / "checkpoint"
        folder.mkdir()
        write_checkpoint(folder, asked.divide)
        plain = read_plainly(folder)
        budget = parse_bytes(asked.memory, "--memory")
        run(folder, Path(name) / "t.moetrace", asked.tokens, budget or 0, plain)


def run(folder: Path, output: Path, tokens: int, budget: int, plain: float) -> None:
    """Stream, and print what it took."""
    opened = open_model(folder, None, "auto")
    source = np.random.default_rng(0)
    texts = [
        TokenSequence.of(source.integers(0, 1000, TEXT_LENGTH))
        for _ in range(tokens // TEXT_LENGTH)
    ]
    layout = Layout(len(opened.sites), opened.described.top_k)
    started = time.monotonic()
    result = stream_sequences(
        opened, texts, output, layout=layout, token_ids=False, memory_bytes=budget,
        process_bytes=resident_bytes(), force=False, say=print,
    )  # fmt: skip
    seconds = time.monotonic() - started
    print(f"{result.tokens} tokens, {result.layers} layers in {seconds:.1f} s")
    print(f"{result.bytes_read / 1e9:.2f} GB; read plainly, the same disk gives {plain:.2f} GB/s")
    share = result.peak_memory_bytes / budget
    print(f"peak of memory {result.peak_memory_bytes / 2**30:.2f} GiB, {share:.0%} of the budget")


def write_checkpoint(folder: Path, divide: int) -> None:
    """Random weights in the names and files of a published checkpoint."""
    import torch
    import transformers
    from transformers.core_model_loading import revert_weight_conversion

    config = shrunk_config(divide)
    with torch.device("meta"):
        kind = transformers.AutoModelForImageTextToText
        model = kind.from_config(config, dtype=torch.bfloat16)
    config.architectures = [type(model).__name__]
    config.save_pretrained(folder)
    state = revert_weight_conversion(model, model.state_dict())
    layers: dict[str, dict[str, Any]] = {}
    for key, tensor in state.items():
        place = key.partition("layers.")[2].partition(".")[0] if "language_model" in key else ""
        layers.setdefault(f"model-{place or 'rest'}.safetensors", {})[key] = tensor
    pool = torch.randn(POOL_BYTES // 2).mul(0.02).bfloat16().view(torch.uint8).numpy().tobytes()
    weight_map = {}
    for file, tensors in layers.items():
        write_safetensors(folder / file, tensors, pool)
        weight_map |= dict.fromkeys(tensors, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def shrunk_config(divide: int) -> Any:
    """M3's, of three layers, its widths divided, with a small vision tower."""
    import transformers

    preset = json.loads((Path(presets.__file__).parent / "minimax-m3.json").read_text())
    text = dict(preset["text_config"], num_hidden_layers=3, moe_layer_freq=[0, 1, 1])
    sparse = dict(text["sparse_attention_config"], sparse_attention_freq=[0, 1, 1])
    text["sparse_attention_config"] = sparse
    for width in ("hidden_size", "intermediate_size", "dense_intermediate_size"):
        text[width] //= divide
    text["shared_intermediate_size"] //= divide
    vision = dict(preset["vision_config"], num_hidden_layers=1)
    return transformers.MiniMaxM3VLConfig(
        text_config=text, vision_config=vision, dtype="bfloat16",
        projector_hidden_size=text["hidden_size"], image_token_index=200025,
        video_token_index=200026,
    )  # fmt: skip


def write_safetensors(path: Path, tensors: dict[str, Any], pool: bytes) -> None:
    """Tensors of these shapes in BF16 or F32, filled from `pool`."""
    names, header, at = {2: "BF16", 4: "F32"}, {}, 0
    for key, tensor in tensors.items():
        size = tensor.numel() * tensor.element_size()
        form = names[tensor.element_size()]
        header[key] = {
            "dtype": form, "shape": list(tensor.shape), "data_offsets": [at, at + size],
        }  # fmt: skip
        at += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        while at > 0:
            at -= file.write(pool[:at])
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read_plainly(folder: Path) -> float:
    """GB/s of reading every file once, which leaves none of them cached."""
    buffer, total, started = bytearray(8 << 20), 0, time.monotonic()
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb", buffering=0) as file:
            while read := file.readinto(buffer):
                total += read
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return total / 1e9 / (time.monotonic() - started)


if __name__ == "__main__":
    main()
