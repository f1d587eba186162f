"""From the header of a GGUF file to a `MoEModel`, and the bytes its experts take in it.

Which layers route is read from the tensors (`blk.N.ffn_*_exps`), not from the metadata: every
architecture of llama.cpp has its own keys for dense layers, the tensors are the same for all.
"""

from __future__ import annotations

import re
import struct
from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from moeprof.errors import ModelError
from moeprof.model.gguf import GgufHeader, GgufTensor
from moeprof.model.moe_model import MoEModel

_EXPERTS = re.compile(r"blk\.(\d+)\.ffn_(?:gate|up|down|gate_up)_exps\.\w+")
_SINGLE_EXPERT = re.compile(r"blk\.\d+\.ffn_(?:gate|up|down)\.\d+\.weight")
_SPLIT = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf")


@dataclass(frozen=True)
class GgufModel:
    """What a GGUF file, or a set of split ones, says of the model in it."""

    path: Path
    metadata: dict[str, Any]
    tensors: tuple[GgufTensor, ...]

    @property
    def architecture(self) -> str:
        """llama.cpp's name of it, `minimax-m3` say."""
        return str(self.metadata["general.architecture"])

    @cached_property
    def model(self) -> MoEModel:
        """Layers and routing; the tensors are not counted. Raises ModelError where it is dense."""
        layers = self._number("block_count") - self._number("nextn_predict_layers", 0)
        routed = {layer: each for layer, each in self._expert_tensors.items() if layer < layers}
        if not routed:
            raise ModelError(f"{self.path}: {self._why_dense()}")
        tokens = self.metadata.get("tokenizer.ggml.tokens", ())
        return MoEModel(
            name=self._name,
            model_type=self.architecture,
            hidden_size=self._number("embedding_length", 0),
            layers=layers,
            moe_layers=tuple(sorted(routed)),
            experts=self._number("expert_count"),
            top_k=self._number("expert_used_count"),
            shared_experts=self._number("expert_shared_count", 0),
            expert_intermediate_size=_width(next(iter(routed.values()))),
            vocab_size=self._number("vocab_size", 0) or len(tokens),
            max_positions=self._number("context_length", 0),
            tied_embeddings=all(tensor.name != "output.weight" for tensor in self.tensors),
        )

    @cached_property
    def expert_bytes(self) -> dict[int, int]:
        """By MoE layer, what one of its routed experts takes in the file, biases included.

        Layers with a tensor of an unknown type are left out.
        """
        model, found = self.model, {}
        for layer in model.moe_layers:
            sizes = [tensor.nbytes for tensor in self._expert_tensors[layer]]
            known = [size for size in sizes if size is not None]
            if len(known) == len(sizes):
                found[layer] = sum(known) // model.experts
        return found

    @cached_property
    def _expert_tensors(self) -> dict[int, list[GgufTensor]]:
        by_layer: dict[int, list[GgufTensor]] = defaultdict(list)
        for tensor in self.tensors:
            if match := _EXPERTS.fullmatch(tensor.name):
                by_layer[int(match[1])].append(tensor)
        return by_layer

    @property
    def _name(self) -> str:
        named = self.metadata.get("general.name")
        return named if isinstance(named, str) and named else self.path.stem

    def _why_dense(self) -> str:
        if any(_SINGLE_EXPERT.fullmatch(tensor.name) for tensor in self.tensors):
            return "its experts are single tensors, as before 2024-04: convert the model again"
        return f"{self._name} has no routed experts (blk.N.ffn_*_exps), there is nothing to record"

    def _number(self, key: str, default: int | None = None) -> int:
        """The whole number of `ARCHITECTURE.key`, which may stand there once a layer."""
        name = f"{self.architecture}.{key}"
        value = self.metadata.get(name, default)
        if isinstance(value, list):
            stated = {each for each in value if each}
            value = stated.pop() if len(stated) == 1 else None
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise ModelError(f"{self.path}: {name} is missing or no whole number for all layers")
        return value


def read_gguf_model(path: str | Path) -> GgufModel:
    """Read the header of `path`, and of the files it is split into if it is the first of them.

    Raises ModelError, one line that names the file, for what is no GGUF or ends too early.
    """
    path = Path(path)
    others = _other_parts(path)
    header = _read_header(path)
    if not isinstance(header.metadata.get("general.architecture"), str):
        raise ModelError(f"{path}: names no architecture, so it is no model")
    parts = [header, *(_read_header(part) for part in others)]
    return GgufModel(path, header.metadata, tuple(t for part in parts for t in part.tensors))


def _other_parts(path: Path) -> list[Path]:
    match = _SPLIT.fullmatch(path.name)
    if match is None or int(match[3]) < 2:
        return []
    stem, number, count = match.groups()
    if int(number) != 1:
        first = path.with_name(f"{stem}-{1:05}-of-{count}.gguf")
        raise ModelError(f"{path}: is part {int(number)} of {int(count)}, give the first: {first}")
    return [path.with_name(f"{stem}-{n:05}-of-{count}.gguf") for n in range(2, int(count) + 1)]


def _read_header(path: Path) -> GgufHeader:
    if path.is_dir():
        raise ModelError(
            f"{path}: is a folder, give a .gguf file (capture transformers takes folders)"
        )
    try:
        with path.open("rb") as file:
            header = GgufHeader(file)
            size = file.seek(0, 2)
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror}") from None
    except struct.error:
        raise ModelError(f"{path}: is no GGUF file, or is cut off in its header") from None
    except (ValueError, KeyError, MemoryError) as error:
        raise ModelError(f"{path}: cannot be read as GGUF: {error}") from None
    for tensor in header.tensors:
        end = header.data_start + tensor.offset + (tensor.nbytes or 0)
        if end > size:
            raise ModelError(
                f"{path}: is cut off: {tensor.name} ends at byte {end:,}, the file has {size:,}"
            )
    return header


def _width(experts: list[GgufTensor]) -> int:
    """The inner width of an expert: columns of `down`, which are its fastest dimension."""
    down = (t.shape[0] for t in experts if t.name.endswith("ffn_down_exps.weight") and t.shape)
    return int(next(down, 0))
