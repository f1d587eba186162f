"""What a long text takes of `capture stream`: memory and seconds, measured on a small model and
counted for MiniMax-M3 itself.

    python benchmarks/stream_long.py [--tokens 32768] [--memory 1GiB] [--folder FOLDER]
    python benchmarks/stream_long.py --count

The first makes a model of M3's architecture with three layers (one dense, two of sparse attention
and experts; 8 heads), streams one random text through it under the budget and prints what it took.
The second needs no weights: the layers of M3's true shapes run in fake tensors.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

import moeprof
from moeprof.capture.prompts import Prompt
from moeprof.capture.stream.activations import Activations
from moeprof.capture.stream.chunks import COUNTED, KEPT_BYTES
from moeprof.capture.stream.needs import gib
from moeprof.capture.stream.opening import OpenedModel
from moeprof.capture.stream.places import Places
from moeprof.capture.stream.run import _expert_bytes
from moeprof.capture.stream.skeleton import Skeleton, build_skeleton
from moeprof.capture.transformers.record import describe_config
from moeprof.capture.transformers.routers.finding import find_router_sites
from moeprof.cli.limits import parse_bytes

WORDS = 1000
SMALL = {
    "vocab_size": WORDS,
    "hidden_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "rotary_dim": 16,
    "intermediate_size": 64,
    "dense_intermediate_size": 256,
    "shared_intermediate_size": 64,
    "num_local_experts": 32,
    "num_experts_per_tok": 4,
    "max_position_embeddings": 1 << 20,
    "mlp_layer_types": ["dense", "sparse", "sparse"],
    "layer_types": ["full_attention", "minimax_m3_sparse", "minimax_m3_sparse"],
    "index_n_heads": 2,
    "index_head_dim": 32,
    "index_block_size": 128,
    "index_topk_blocks": 16,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
COUNT_LENGTHS, COUNT_TOKENS = (8192, 32768, 131072), (16, 64, 256, 1024)


def main() -> None:
    """Measure, or count."""
    options = parse()
    if options.count:
        count()
    else:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            measure(Path(folder), options.tokens, options.memory)


def measure(folder: Path, tokens: int, memory: str) -> None:
    """Stream one text of random words."""
    checkpoint = write_model(folder / "model")
    words = np.random.default_rng(0).integers(WORDS, size=tokens)
    text = Prompt(" ".join(f"w{word}" for word in words))
    started = time.perf_counter()
    result = moeprof.stream(
        checkpoint,
        [text],
        folder / "t.moetrace",
        device="cpu",
        memory_bytes=parse_bytes(memory, "--memory"),
        progress=print,
    )
    seconds = time.perf_counter() - started
    print(
        f"{result.tokens:,} tokens through {result.layers} layers in {seconds:.0f} s, "
        f"{gib(result.peak_memory_bytes)} of memory at most, budget {memory}"
    )
    shutil.rmtree(folder / "t.moetrace")


def write_model(folder: Path) -> Path:
    """The small model with random weights, and a tokenizer of words."""
    import torch
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import (
        MiniMaxM3VLForCausalLM,
        MiniMaxM3VLTextConfig,
        PreTrainedTokenizerFast,
    )

    torch.manual_seed(0)
    MiniMaxM3VLForCausalLM(MiniMaxM3VLTextConfig(**SMALL)).save_pretrained(folder)
    words = Tokenizer(WordLevel({f"w{i}": i for i in range(WORDS)}, unk_token="w0"))
    words.pre_tokenizer = WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(folder)
    return folder


def count() -> None:
    """Bytes that a layer of M3 with sparse attention takes beside its weights, in BF16."""
    opened = opened_m3()
    activations, layer = Activations(opened, _expert_bytes(opened)), opened.places.last
    for length in COUNT_LENGTHS:
        sizes = {tokens: activations.nbytes(layer, length, tokens) for tokens in COUNT_TOKENS}
        told = ", ".join(
            f"{tokens:,} at once {gib(KEPT_BYTES + int(nbytes / COUNTED))}"
            for tokens, nbytes in sizes.items()
        )
        print(f"{length:,} tokens: {told}", flush=True)


def opened_m3() -> OpenedModel:
    """MiniMax-M3 from its configuration, without a checkpoint."""
    import torch
    import transformers

    text = resources.files("moeprof.model.presets").joinpath("minimax-m3.json").read_text()
    known: dict[str, Any] = json.loads(text)
    config = transformers.AutoConfig.for_model(known.pop("model_type"), **known)
    model = build_skeleton(config, transformers.AutoModelForImageTextToText, torch.bfloat16)
    described = describe_config(config)
    sites = find_router_sites(model, described.moe_layers, described.experts)
    skeleton = Skeleton(model, {}, torch.bfloat16, torch.device("cpu"))
    return OpenedModel(skeleton, described, sites, Places.of(model, sites), {})


def parse() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=int, default=32768)
    parser.add_argument("--memory", default="1GiB")
    parser.add_argument("--folder", type=Path, help="where the model and hidden states lie")
    parser.add_argument("--count", action="store_true", help="count for M3's true shapes")
    return parser.parse_args()


if __name__ == "__main__":
    main()
