"""What `capture stream` takes at MiniMax-M3's size: a checkpoint of its true shapes, one dense
layer and two of experts (33 GB of random BF16), streamed on this machine under a memory budget.

    python benchmarks/stream_real_size.py --folder FOLDER [--memory 20GiB] [--keep]

The disk's own rate is that of reading the same files in order past the page cache (O_DIRECT, 16 MiB
at a time, as `dd iflag=direct bs=16M` does), measured before each part that is read, for the rate
of a shared disk changes; what the system has cached of the files is dropped before a run
(posix_fadvise DONTNEED). With many tokens computing binds,
with 64 reading does.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import shutil
import struct
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

import moeprof
from moeprof.capture.prompts import Prompt
from moeprof.capture.stream.layers import LayerStream
from moeprof.capture.stream.skeleton import Skeleton, build_skeleton
from moeprof.cli.limits import parse_bytes

SHARD_BYTES, BLOCK = 5 << 30, 16 << 20
WORDS, LENGTH = 1000, 512
LAYERS = [0, 1, 1]  # dense, experts, experts
M3_DENSE, M3_MOE = 3, 57
GB = 1e9


def main() -> None:
    """Write, stream with many tokens and with few, print, remove."""
    options = parse()
    options.folder.mkdir(parents=True, exist_ok=True)
    checkpoint = options.folder / "m3-three-layers"
    try:
        if not (checkpoint / "config.json").is_file():
            write_checkpoint(checkpoint)
        for tokens in options.tokens:
            measure(checkpoint, tokens, options.memory, options.folder / "run.moetrace")
    finally:
        if not options.keep:
            shutil.rmtree(checkpoint, ignore_errors=True)


def measure(checkpoint: Path, tokens: int, memory: str, output: Path) -> None:
    """Stream `tokens` and print what each layer took beside the disk's own rate."""
    prompts = random_prompts(tokens)
    drop_cached(checkpoint)
    with timed(checkpoint) as spent:
        result = moeprof.stream(
            checkpoint,
            prompts,
            output,
            memory_bytes=parse_bytes(memory, "--memory"),
            device="cpu",
            force=True,
            progress=print,
        )
    shutil.rmtree(output)
    load = os.getloadavg()[0]
    print(f"\n{tokens:,} tokens, {len(prompts)} texts; load {load:.1f} on {os.cpu_count()} cores")
    print_layers(spent, sizes(checkpoint))
    print(f"memory: {result.peak_memory_bytes / GB:.2f} GB at most, budget {memory}", flush=True)


def print_layers(spent: dict[str, list[float]], nbytes: list[int]) -> None:
    """A line a layer, and all of M3 as so many of them."""
    read, compute = spent["read"], [0.0, *spent["compute"]]  # first, what stands beside layers
    names = ["embeddings", "dense layer", *(["layer of experts"] * 2)]
    for name, size, reading, computing, raw in zip(
        names, nbytes, read, compute, spent["raw"], strict=True
    ):
        print(
            f"{name:17}{size / GB:6.2f} GB read in {reading:6.1f} s ({size / reading / GB:.2f} "
            f"GB/s; the disk just before: {raw / GB:.2f}), computed in {computing:6.1f} s"
        )
    ideal = sum(size / raw for size, raw in zip(nbytes, spent["raw"], strict=True))
    print(f"all read at {ideal / sum(read):.0%} of the disk's own rate")
    total = [reading + computing for reading, computing in zip(read, compute, strict=True)]
    whole = total[0] + M3_DENSE * total[1] + M3_MOE * (total[2] + total[3]) / 2
    print(
        f"projected, {M3_DENSE} dense layers and {M3_MOE} of experts at the seconds measured: "
        f"{whole / 3600:.2f} h"
    )


@contextmanager
def timed(checkpoint: Path) -> Iterator[dict[str, list[float]]]:
    """Seconds of every part that is read, and of every layer that is computed.

    Before a part is read, the disk's own rate is measured ("raw", bytes a second).
    """
    spent: dict[str, list[float]] = defaultdict(list)
    places = {"read": (Skeleton, "load"), "compute": (LayerStream, "_compute")}
    own = {name: getattr(kind, method) for name, (kind, method) in places.items()}

    def around(name: str) -> Any:
        def run(*args: Any, **kwargs: Any) -> Any:
            if name == "read":
                spent["raw"].append(direct_rate(checkpoint))
            started = time.perf_counter()
            try:
                return own[name](*args, **kwargs)
            finally:
                spent[name].append(time.perf_counter() - started)

        return run

    try:
        for name, (kind, method) in places.items():
            setattr(kind, method, around(name))
        yield spent
    finally:
        for name, (kind, method) in places.items():
            setattr(kind, method, own[name])


def random_prompts(tokens: int) -> list[Prompt]:
    """Texts of LENGTH words, or one of fewer."""
    random, length = np.random.default_rng(0), min(LENGTH, tokens)
    rows = random.integers(WORDS, size=(tokens // length, length))
    return [Prompt(" ".join(f"w{word}" for word in row)) for row in rows]


def config_of_three() -> Any:
    """M3's configuration with three layers."""
    import transformers

    text = resources.files("moeprof.model.presets").joinpath("minimax-m3.json").read_text()
    known = json.loads(text)
    short = known["text_config"]
    short |= {"num_hidden_layers": len(LAYERS), "moe_layer_freq": LAYERS, "dtype": "bfloat16"}
    short["sparse_attention_config"]["sparse_attention_freq"] = LAYERS
    return transformers.AutoConfig.for_model(
        known["model_type"],
        text_config=short,
        vision_config={**known["vision_config"], "num_hidden_layers": 1},
        dtype="bfloat16",
        architectures=known["architectures"],
    )


def stored_shapes(config: Any) -> dict[str, tuple[tuple[int, ...], Any]]:
    """Shape and dtype of what streaming reads, by its name in a checkpoint as published."""
    import torch
    import transformers
    from transformers.core_model_loading import revert_weight_conversion

    model = build_skeleton(config, transformers.AutoModelForImageTextToText, torch.bfloat16)
    names = revert_weight_conversion(model, model.state_dict())
    found = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in names.items()}
    return {name: value for name, value in found.items() if name.startswith("language_model.model")}


def write_checkpoint(folder: Path) -> None:
    """Random values in M3's shapes, in shards. Stops where the disk is too small."""
    import torch
    from safetensors.torch import _TYPES

    named = {dtype: name for name, dtype in _TYPES.items()}
    config = config_of_three()
    shapes = stored_shapes(config)
    nbytes = {n: int(np.prod(shape)) * dtype.itemsize for n, (shape, dtype) in shapes.items()}
    needed, free = sum(nbytes.values()), shutil.disk_usage(folder.parent).free
    print(f"writes {needed / GB:.1f} GB to {folder}, {free / GB:.1f} GB are free")
    if needed + (4 << 30) > free:
        raise SystemExit(f"{folder.parent}: needs {needed / GB + 4:.0f} GB of disk, choose another")
    folder.mkdir()
    random = torch.randn(64 << 20, generator=torch.Generator().manual_seed(0)) * 0.02
    block = random.to(torch.bfloat16).view(torch.uint8).numpy()
    weight_map: dict[str, str] = {}
    started = time.perf_counter()
    for number, names in enumerate(shards(nbytes)):
        file = f"model-{number + 1:05}.safetensors"
        weight_map |= dict.fromkeys(names, file)
        write_shard(folder / file, {n: (shapes[n], named[shapes[n][1]]) for n in names}, block)
    index = {"metadata": {"total_size": needed}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    save_tokenizer(folder)
    config.save_pretrained(folder)
    print(f"written in {time.perf_counter() - started:.0f} s")


def shards(nbytes: dict[str, int]) -> Iterator[list[str]]:
    """Names in order, in shards of about SHARD_BYTES."""
    names: list[str] = []
    for name in nbytes:
        names.append(name)
        if sum(nbytes[n] for n in names) >= SHARD_BYTES:
            yield names
            names = []
    if names:
        yield names


def write_shard(path: Path, tensors: dict[str, Any], block: Any) -> None:
    """A safetensors file whose values are parts of `block`, norms and biases none."""
    header, at = {}, 0
    for name, ((shape, dtype), written) in tensors.items():
        size = int(np.prod(shape)) * dtype.itemsize
        header[name] = {"dtype": written, "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for number, entry in enumerate(header.values()):
            begin, end = entry["data_offsets"]
            plain = len(entry["shape"]) < 2
            write_values(file, end - begin, None if plain else block, number * 7919 * 4096)
        file.flush()
        os.fsync(file.fileno())


def write_values(file: Any, size: int, block: Any, start: int) -> None:
    """`size` bytes of `block`, again and again from `start`, or zeros."""
    if block is None:
        file.write(bytes(size))
        return
    while size > 0:
        start %= len(block)
        part = block[start : start + size]
        file.write(part.data)
        start, size = start + len(part), size - len(part)


def save_tokenizer(folder: Path) -> None:
    """Words w0, w1, ... are tokens 0, 1, ..."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(WordLevel({f"w{i}": i for i in range(WORDS)}, unk_token="w0"))
    words.pre_tokenizer = WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(folder)


def sizes(folder: Path) -> list[int]:
    """Bytes of the embeddings and what else is beside the layers, then of each layer."""
    from moeprof.capture.stream.checkpoint import open_checkpoint

    found = [0] * (1 + len(LAYERS))
    for name, tensor in open_checkpoint(folder).items():
        parts = name.split(".")
        found[1 + int(parts[parts.index("layers") + 1]) if "layers" in parts else 0] += (
            tensor.nbytes
        )
    return found


def files(folder: Path) -> list[Path]:
    """The shards, in order."""
    return sorted(folder.glob("*.safetensors"))


def drop_cached(folder: Path) -> None:
    """Let the system forget what it has cached of the shards."""
    for path in files(folder):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def direct_rate(folder: Path, limit: int = 2 << 30) -> float:
    """Bytes a second of reading shards in order past the page cache, `limit` bytes of them."""
    buffer, done, started = mmap.mmap(-1, BLOCK), 0, time.perf_counter()
    for path in files(folder):
        file = os.open(path, os.O_RDONLY | os.O_DIRECT)
        try:
            at = 0
            while done < limit and (read := os.preadv(file, [buffer], at)):
                at, done = at + read, done + read
        finally:
            os.close(file)
    return done / (time.perf_counter() - started)


def parse() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, required=True, help="on the disk to measure")
    parser.add_argument("--tokens", type=int, nargs="+", default=[64, 4096])
    parser.add_argument("--memory", default="20GiB")
    parser.add_argument("--keep", action="store_true", help="leave the checkpoint")
    return parser.parse_args()


if __name__ == "__main__":
    main()
