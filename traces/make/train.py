"""Train tiny-m3, a small language model of MiniMax-M3's architecture, on a CPU.

    python traces/make/train.py --corpus corpus --output tiny_m3 --minutes 48

The learning rate follows the share of the minutes that have passed, so the run ends on time on
any machine; two runs with one seed therefore agree in method but not bit by bit.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from architecture import BOS, EOS, save, trainable
from corpus import Document, read_split
from experts import use_sorted_experts
from muon import Muon
from sources import DOMAINS
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast
from vocabulary import train_tokenizer


@dataclass(frozen=True)
class Plan:
    """The settings of a run."""

    minutes: float
    seed: int
    compile: bool
    context: int = 512
    rows_per_domain: int = 2
    matrix_rate: float = 0.02
    adam_rate: float = 0.004
    router_rate: float = 0.001
    decay: float = 0.1
    bias_step: float = 0.005
    warmup: float = 0.02
    cooldown: float = 0.45
    save_minutes: float = 6.0


def encode(documents: list[Document], tokenizer: PreTrainedTokenizerFast) -> dict[str, Tensor]:
    """One stream of tokens per domain: BOS document EOS BOS document EOS ..."""
    streams: dict[str, Tensor] = {}
    for domain in DOMAINS:
        texts = [item.text for item in documents if item.domain == domain]
        ids = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
        streams[domain] = torch.cat([torch.tensor([BOS, *row, EOS]) for row in ids])
    return streams


def batch(streams: dict[str, Tensor], plan: Plan, generator: torch.Generator) -> Tensor:
    """As many random windows from each domain, whatever its size: domains weigh the same."""
    rows = []
    for stream in streams.values():
        for _ in range(plan.rows_per_domain):
            high = len(stream) - plan.context
            start = int(torch.randint(high, (), generator=generator))
            rows.append(stream[start : start + plan.context + 1])
    return torch.stack(rows)


def rate_share(progress: float, plan: Plan) -> float:
    """Linear warm-up, a plateau, and a linear way down to zero."""
    return max(0.0, min(1.0, progress / plan.warmup, (1.0 - progress) / plan.cooldown))


def optimizers(model: nn.Module, plan: Plan) -> tuple[Muon, torch.optim.AdamW]:
    """Muon for the matrices inside layers, AdamW for router, embeddings, head and norms."""
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    routers: list[nn.Parameter] = []
    for name, weight in model.named_parameters():
        inner = "layers." in name and weight.ndim >= 2
        (routers if ".gate." in name else matrices if inner else others).append(weight)
    # The router moves slower than the rest: a choice that flips at each step trains no expert.
    groups = [
        {"params": others, "peak": plan.adam_rate},
        {"params": routers, "peak": plan.router_rate},
    ]
    adam = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    return Muon(matrices, momentum=0.95, decay=plan.decay), adam


@torch.no_grad()
def balance(blocks: list[nn.Module], step: float) -> list[float]:
    """Move each selection bias against its expert's load; returns max/mean load per layer.

    This is M3's and DeepSeek's way: the bias takes part in the choice of experts only, so
    balance costs no loss term and no gradient.
    """
    imbalance = []
    for block in blocks:
        load = block.experts.load.float()
        bias = block.gate.e_score_correction_bias
        bias.add_(torch.sign(load.mean() - load), alpha=step)
        imbalance.append(float(load.max() / load.mean()))
    return imbalance


class Trainer:
    """One training run and its state."""

    def __init__(self, plan: Plan, corpus: Path, output: Path) -> None:
        self.plan, self.output = plan, output
        documents = read_split(corpus, "train")
        self.tokenizer = train_tokenizer(item.text for item in documents)
        self.streams = encode(documents, self.tokenizer)
        self.generator = torch.Generator().manual_seed(plan.seed)
        self.model = trainable(plan.seed)
        self.blocks = use_sorted_experts(self.model)
        self.forward = torch.compile(self.model) if plan.compile else self.model
        self.muon, self.adam = optimizers(self.model, plan)
        self.begin = time.monotonic()
        self.tokens = 0

    def progress(self) -> float:
        """The share of the time budget that has passed."""
        return (time.monotonic() - self.begin) / (60 * self.plan.minutes)

    def step(self) -> tuple[float, list[float]]:
        """One batch: loss, gradients, both optimizers, selection biases."""
        share = rate_share(self.progress(), self.plan)
        rows = batch(self.streams, self.plan, self.generator)
        logits = self.forward(input_ids=rows[:, :-1], use_cache=False).logits
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())
        loss.backward()
        self.muon.step(self.plan.matrix_rate * share)
        for group in self.adam.param_groups:
            group["lr"] = group["peak"] * share
        self.adam.step()
        self.adam.zero_grad(set_to_none=True)
        self.tokens += rows[:, 1:].numel()
        return loss.item(), balance(self.blocks, self.plan.bias_step * share)

    def log(self, step: int, loss: float, imbalance: list[float]) -> None:
        """One line of progress on stderr."""
        seconds = time.monotonic() - self.begin
        layers = " ".join(f"{value:.2f}" for value in imbalance)
        print(
            f"{seconds / 60:5.1f} min  step {step}  loss {loss:.3f}  "
            f"{self.tokens / seconds:.0f} tok/s  max/mean {layers}",
            file=sys.stderr,
            flush=True,
        )

    def run(self) -> int:
        """Train until the minutes are over; returns the number of steps."""
        step, mean_loss, next_save = 0, 0.0, self.plan.save_minutes
        self.step()
        # The clock starts here: the first step also compiles.
        self.begin, self.tokens = time.monotonic(), 0
        while self.progress() < 1.0:
            loss, imbalance = self.step()
            step += 1
            mean_loss += (loss - mean_loss) / min(step, 20)
            if step % 20 == 0 or step <= 3:
                self.log(step, mean_loss, imbalance)
            if self.progress() * self.plan.minutes > next_save:
                self.save()
                next_save += self.plan.save_minutes
        self.save()
        return step

    def save(self) -> None:
        """Write a usable folder, so that an interrupted run leaves its last state."""
        save(self.model, self.tokenizer, self.output, self.plan.seed)


def main() -> None:
    """Parse the arguments, train, and print a JSON line with what was done."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--corpus", type=Path, required=True, help="folder made by corpus.py")
    parser.add_argument("--output", type=Path, required=True, help="model folder to write")
    parser.add_argument("--minutes", type=float, default=48.0)
    parser.add_argument("--seed", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--compile", action="store_true", help="torch.compile (needs a C++ one)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    plan = Plan(options.minutes, options.seed, options.compile)
    trainer = Trainer(plan, options.corpus, options.output)
    steps = trainer.run()
    print(json.dumps({"plan": asdict(plan), "steps": steps, "tokens": trainer.tokens}))


if __name__ == "__main__":
    main()
