"""What `capture stream` takes at MiniMax-M3's size: a checkpoint of its true shapes, one dense
layer and two of experts (33 GB of random BF16), streamed on this machine under a memory budget.

    python benchmarks/stream_real_size.py --folder FOLDER [--memory 20GiB] [--keep]
    python benchmarks/stream_real_size.py --folder FOLDER --experts 16 --layers 6  # a small try

The disk's own rate is that of reading the same files past the page cache (O_DIRECT, 16 MiB at a
time, as `dd iflag=direct bs=16M` does). A shared disk changes its mind, so it is measured before
and after every part, with the clock and all reading of the run stopped; what the system has cached
of the files is dropped before a run (posix_fadvise DONTNEED). The share of it that the run gets is
what reading every part at the mean of the two rates beside it takes, by what the run takes from
its first read to its last token: computing and all, and the first touch of all memory, which a
run of 60 layers pays for once, in the first layer of experts. Beside it stands the rate while reads
are under way, when nothing else binds. With many tokens computing binds, with 64 reading does.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import shutil
import struct
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import resources
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

import moeprof
from moeprof.capture.prompts import Prompt
from moeprof.capture.stream import pipeline
from moeprof.capture.stream.layers import LayerStream
from moeprof.capture.stream.loading import Loader
from moeprof.capture.stream.skeleton import build_skeleton
from moeprof.cli.limits import parse_bytes

SHARD_BYTES, BLOCK = 5 << 30, 16 << 20
SAMPLE_BYTES = 2 << 30  # that are read for the disk's own rate
WORDS, LENGTH = 1000, 512
M3_DENSE, M3_MOE = 3, 57
GB = 1e9


def main() -> None:
    """Write, stream with few tokens and with many, print, remove."""
    options = parse()
    options.folder.mkdir(parents=True, exist_ok=True)
    checkpoint = options.folder / f"m3-{options.experts}-experts-{options.layers}-layers"
    try:
        if not (checkpoint / "config.json").is_file():
            write_checkpoint(checkpoint, config_of(options.experts, [0] + [1] * options.layers))
        for tokens in options.tokens:
            measure(checkpoint, tokens, options.memory, options.folder / "run.moetrace")
    finally:
        if not options.keep:
            shutil.rmtree(checkpoint, ignore_errors=True)


def measure(checkpoint: Path, tokens: int, memory: str, output: Path) -> None:
    """Stream `tokens` and print what each layer took beside the disk's own rate."""
    prompts = random_prompts(tokens)
    drop_cached(checkpoint)
    processor = time.process_time()
    with watched(Disk(checkpoint)) as watch:
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
    print_parts(watch, sizes(checkpoint))
    print(f"processor: {time.process_time() - processor:.0f} s")
    print(f"memory: {result.peak_memory_bytes / GB:.2f} GB at most, budget {memory}", flush=True)


def print_parts(watch: Watch, nbytes: list[int]) -> None:
    """A line a part, the share of the disk's rate, and all of M3 as so many of the last layer."""
    names = ["embeddings", "dense layer", *["layer of experts"] * (len(nbytes) - 2)]
    compute = [0.0, *watch.compute]
    raw = [2 / (1 / before + 1 / after) for before, after in pairwise(watch.raw)]
    for name, size, waited, computed, rate in zip(
        names, nbytes, watch.load, compute, raw, strict=True
    ):
        print(
            f"{name:17}{size / GB:6.2f} GB: waited for {waited:6.1f} s, computed in "
            f"{computed:6.1f} s; the disk {rate / GB:.2f} GB/s"
        )
    ideal = [size / rate for size, rate in zip(nbytes, raw, strict=True)]
    took = [waited + computed for waited, computed in zip(watch.load, compute, strict=True)]
    print(
        f"all in {sum(took):.1f} s, {sum(nbytes) / sum(took) / GB:.2f} GB/s: "
        f"{sum(ideal) / sum(took):.0%} of the disk's own rate; "
        f"the last layer {ideal[-1] / took[-1]:.0%}"
    )
    rate = sum(nbytes) / watch.reading.seconds
    share = sum(ideal) / watch.reading.seconds
    print(f"while it reads: {rate / GB:.2f} GB/s, {share:.0%} of the disk's own rate")
    whole = took[0] + M3_DENSE * took[1] + M3_MOE * took[-1]
    print(f"projected, {M3_DENSE} dense layers and {M3_MOE} as the last one: {whole / 3600:.2f} h")


@dataclass
class Watch:
    """Seconds, without those in which the disk's own rate was measured."""

    load: list[float] = field(default_factory=list)  # waited for a part
    compute: list[float] = field(default_factory=list)  # a layer over all tokens
    raw: list[float] = field(default_factory=list)  # bytes a second before each part, and at last
    reading: pipeline.Busy = field(default_factory=pipeline.Busy)  # while reads were under way


@contextmanager
def watched(disk: Disk) -> Iterator[Watch]:
    """What parts of the run in the body take."""
    watch = Watch()
    gate = Gate(pipeline.read_into, watch.reading)
    load, compute = Loader._load, LayerStream._compute

    def rated_load(*args: Any) -> None:
        with gate.closed():
            watch.raw.append(disk.rate())
        started = time.perf_counter()
        load(*args)
        watch.load.append(time.perf_counter() - started)

    def timed_compute(*args: Any) -> None:
        started = time.perf_counter()
        compute(*args)
        watch.compute.append(time.perf_counter() - started)

    with (
        patch.object(pipeline, "read_into", gate.read),
        patch.object(Loader, "_load", rated_load),
        patch.object(LayerStream, "_compute", timed_compute),
    ):
        yield watch
    watch.raw.append(disk.rate())


class Gate:
    """Reads go through it, and none while it is closed."""

    def __init__(self, read: Any, reading: pipeline.Busy) -> None:
        self._read, self._reading, self._inside = read, reading, 0
        self._changed, self._closed = threading.Condition(), False

    def read(self, *args: Any) -> Any:
        """As `read` does, once the gate is open."""
        with self._changed:
            self._changed.wait_for(lambda: not self._closed)
            self._inside += 1
        try:
            with self._reading:
                return self._read(*args)
        finally:
            with self._changed:
                self._inside -= 1
                self._changed.notify_all()

    @contextmanager
    def closed(self) -> Iterator[None]:
        """Nobody reads while the body runs."""
        with self._changed:
            self._closed = True
            self._changed.wait_for(lambda: not self._inside)
        yield
        with self._changed:
            self._closed = False
            self._changed.notify_all()


def random_prompts(tokens: int) -> list[Prompt]:
    """Texts of LENGTH words, or one of fewer."""
    random, length = np.random.default_rng(0), min(LENGTH, tokens)
    rows = random.integers(WORDS, size=(tokens // length, length))
    return [Prompt(" ".join(f"w{word}" for word in row)) for row in rows]


def config_of(experts: int, layers: list[int]) -> Any:
    """M3's configuration with these layers, 1 where one has `experts`."""
    import transformers

    text = resources.files("moeprof.model.presets").joinpath("minimax-m3.json").read_text()
    known = json.loads(text)
    short = known["text_config"]
    short |= {"num_hidden_layers": len(layers), "moe_layer_freq": layers, "dtype": "bfloat16"}
    short |= {"num_local_experts": experts}
    short["sparse_attention_config"]["sparse_attention_freq"] = layers
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


def write_checkpoint(folder: Path, config: Any) -> None:
    """Random values in M3's shapes, in shards. Stops where the disk is too small."""
    import torch
    from safetensors.torch import _TYPES

    named = {dtype: name for name, dtype in _TYPES.items()}
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

    found: dict[int, int] = defaultdict(int)
    for name, tensor in open_checkpoint(folder).items():
        parts = name.split(".")
        found[int(parts[parts.index("layers") + 1]) if "layers" in parts else -1] += tensor.nbytes
    return [found[layer] for layer in sorted(found)]


def files(folder: Path) -> list[Path]:
    """The shards, in order."""
    return sorted(folder.glob("*.safetensors"))


def drop_cached(folder: Path) -> None:
    """Let the system forget what it has cached of the shards."""
    for path in files(folder):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


class Disk:
    """The disk that the shards in `folder` are on."""

    def __init__(self, folder: Path) -> None:
        self._places = [
            (path, at) for path in files(folder) for at in range(0, path.stat().st_size, BLOCK)
        ]
        self._next, self._buffer = 0, mmap.mmap(-1, BLOCK)

    def rate(self) -> float:
        """Bytes a second of reading SAMPLE_BYTES in order, from where the last sample ended."""
        done, started = 0, time.perf_counter()
        for _ in range(SAMPLE_BYTES // BLOCK):
            path, at = self._places[self._next]
            self._next = (self._next + 1) % len(self._places)
            file = os.open(path, os.O_RDONLY | os.O_DIRECT)
            try:
                done += os.preadv(file, [self._buffer], at)
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
    parser.add_argument("--experts", type=int, default=128, help="of a layer; fewer for a try")
    parser.add_argument("--layers", type=int, default=2, help="of experts, behind one dense")
    parser.add_argument("--keep", action="store_true", help="leave the checkpoint")
    return parser.parse_args()


if __name__ == "__main__":
    main()
