"""Evaluate tiny-m3 on held-out files, as it is loaded from its folder.

    python traces/make/evaluate.py --corpus corpus --model moeprof/demo/tiny_m3

prints one JSON: bits per byte beside an order-2 byte model on the same bytes, the imbalance of
each MoE layer, and the routing specialization beside its shuffle null. The exit code is 3 if the
model does not beat the byte model in total or the specialization does not exceed the null.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from bytemodel import OrderTwo
from corpus import Document, read_split
from numpy.typing import NDArray
from sources import DOMAINS
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from moeprof.analysis.specialization import domain_divergence, shuffled_divergence

CONTEXT = 512
STRIDE = 256
PERMUTATIONS = 500

Floats = NDArray[np.float64]


@dataclass
class Measured:
    """What the model did on one document."""

    domain: str
    bytes: int
    tokens: int
    model_bits: float
    order2_bits: float
    own_order2_bits: float
    counts: Floats


class Router:
    """Keeps the chosen experts of every MoE layer in the latest forward pass."""

    def __init__(self, model: nn.Module) -> None:
        self.chosen: list[Tensor] = []
        layers = model.model.layers
        self.gates = [layer.mlp.gate for layer in layers if hasattr(layer.mlp, "gate")]
        for gate in self.gates:
            gate.register_forward_hook(self._keep)

    def _keep(self, gate: nn.Module, inputs: object, output: tuple[Tensor, ...]) -> None:
        self.chosen.append(output[2])

    def counts(self, skip: int) -> Floats:
        """[layers, experts] choices of the tokens from `skip` on; forgets them."""
        experts = self.gates[0].num_experts
        rows = [torch.bincount(kept[skip:].flatten(), minlength=experts) for kept in self.chosen]
        self.chosen.clear()
        table: Floats = torch.stack(rows).double().numpy()
        return table


def windows(length: int) -> Iterator[tuple[int, int, int]]:
    """(start, end, first scored position) of windows that score every token but BOS once.

    After the first window each one scores STRIDE tokens with at least CONTEXT - STRIDE tokens
    before them.
    """
    end = min(length, CONTEXT)
    yield 0, end, 1
    while end < length:
        scored, end = end, min(length, end + STRIDE)
        yield max(0, end - CONTEXT), end, scored


@torch.inference_mode()
def score(model: nn.Module, router: Router, ids: Tensor) -> tuple[float, Floats]:
    """Bits of all tokens after the first one, and the routing counts of all tokens."""
    bits, counts = 0.0, np.zeros((len(router.gates), router.gates[0].num_experts))
    for start, end, scored in windows(len(ids)):
        logits = model(input_ids=ids[None, start:end], use_cache=False).logits[0]
        share = torch.log_softmax(logits[scored - 1 - start : -1].float(), dim=-1)
        bits -= float(share.gather(1, ids[scored:end, None]).double().sum()) / math.log(2)
        counts += router.counts(0 if start == 0 and scored == 1 else scored - start)
    return bits, counts


def load(folder: Path, dtype: str) -> tuple[nn.Module, PreTrainedTokenizerFast]:
    """The model and tokenizer of a folder, without any network."""
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=getattr(torch, dtype), local_files_only=True
    )
    return model.eval(), AutoTokenizer.from_pretrained(folder, local_files_only=True)


def measure(
    folder: Path, dtype: str, train: list[Document], heldout: list[Document]
) -> list[Measured]:
    """Run the model and the byte models over every held-out document."""
    model, tokenizer = load(folder, dtype)
    router = Router(model)
    pooled = OrderTwo(item.text.encode() for item in train)
    own = {
        domain: OrderTwo(item.text.encode() for item in train if item.domain == domain)
        for domain in DOMAINS
    }
    results = []
    for item in heldout:
        text = item.text.encode()
        ids = tokenizer(item.text, return_tensors="pt", verbose=False)["input_ids"][0]
        bits, counts = score(model, router, ids)
        results.append(
            Measured(
                item.domain, len(text), len(ids) - 1, bits,
                pooled.bits(text), own[item.domain].bits(text), counts,
            )
        )  # fmt: skip
    return results


def repeats(folder: Path, dtype: str, text: str) -> bool:
    """True if two separate loads of the folder choose the same experts for the same text."""
    seen = []
    for _ in range(2):
        model, tokenizer = load(folder, dtype)
        router = Router(model)
        ids = tokenizer(text, return_tensors="pt")["input_ids"][:, :CONTEXT]
        with torch.inference_mode():
            model(input_ids=ids, use_cache=False)
        seen.append(torch.stack(router.chosen))
    return bool(torch.equal(*seen))


def bits_per_byte(results: list[Measured]) -> dict[str, float]:
    """The three code lengths per byte of some documents."""
    size = sum(item.bytes for item in results)
    return {
        "documents": len(results),
        "bytes": size,
        "tokens": sum(item.tokens for item in results),
        "model": round(sum(item.model_bits for item in results) / size, 4),
        "order2": round(sum(item.order2_bits for item in results) / size, 4),
        "order2_own_domain": round(sum(item.own_order2_bits for item in results) / size, 4),
    }


def imbalance(results: list[Measured]) -> dict[str, list[float]]:
    """Max/mean load of each MoE layer, over tokens as they are and with equal domains."""
    domains = [
        sum((item.counts for item in results if item.domain == domain), start=np.zeros(()))
        for domain in DOMAINS
    ]
    loads = {
        "tokens": np.sum(domains, axis=0),
        "equal_domains": np.sum([load / load.sum() for load in domains], axis=0),
    }
    return {
        name: [round(float(row.max() / row.mean()), 3) for row in load]
        for name, load in loads.items()
    }


def routing(results: list[Measured], seed: int) -> dict[str, object]:
    """The specialization of each layer and its mean, beside the shuffle null."""
    counts = np.stack([item.counts for item in results])
    labels = np.array([DOMAINS.index(item.domain) for item in results])
    layers = domain_divergence(counts, labels, len(DOMAINS))
    chance = shuffled_divergence(counts, labels, len(DOMAINS), shuffles=PERMUTATIONS, seed=seed)
    return {
        "bits": round(float(layers.mean()), 4),
        "null_mean": round(float(chance.mean()), 4),
        "null_95": round(float(np.quantile(chance, 0.95)), 4),
        "permutations": PERMUTATIONS,
        "layers": [round(float(value), 4) for value in layers],
    }


def main() -> None:
    """Measure, print, and fail if the model or its routing is no better than chance."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--corpus", type=Path, required=True, help="folder made by corpus.py")
    parser.add_argument("--model", type=Path, required=True, help="folder made by train.py")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--seed", type=int, default=0, help="of the permutations")
    options = parser.parse_args()
    heldout = read_split(options.corpus, "heldout")
    results = measure(options.model, options.dtype, read_split(options.corpus, "train"), heldout)
    total, special = bits_per_byte(results), routing(results, options.seed)
    per_domain = {
        domain: bits_per_byte([item for item in results if item.domain == domain])
        for domain in DOMAINS
    }
    report = {
        "dtype": options.dtype,
        "bits_per_byte": {"total": total, **per_domain},
        "imbalance": imbalance(results),
        "specialization": special,
        "same_routing_when_loaded_twice": repeats(options.model, options.dtype, heldout[0].text),
    }
    print(json.dumps(report, indent=1))
    good = total["model"] < total["order2"] and float(str(special["bits"])) > float(
        str(special["null_95"])
    )
    sys.exit(0 if good else 3)


if __name__ == "__main__":
    main()
