"""The oracle: an engine that makes every step by itself and counts everything anew in each.

No heaps, running sums, runs of steps or grids: lists of dictionaries under the rules in prose of
`engines.toml`'s sources. Written apart from the simulator, for a few dozen short requests.
"""

from __future__ import annotations

from collections.abc import Callable
from math import ceil, floor
from typing import Any

from moeprof.projection.serving import Admission, EnginePolicy, Request, Victim
from moeprof.projection.step.batch import Batch

Row = dict[str, Any]


class PlainEngine:
    def __init__(self, policy: EnginePolicy, kv: int | None, advance: float, drafts: int) -> None:
        self.policy, self.advance, self.drafts = policy, advance, drafts
        self.blocks = None if kv is None else kv // policy.block_tokens
        self.waiting: list[Row] = []
        self.running: list[Row] = []  # in order of entry
        self.full = False
        self.ratio, self.ratio_age = 0.7, 0
        self.preempted = 0

    def in_blocks(self, tokens: int) -> int:
        return ceil(tokens / self.policy.block_tokens)

    def made(self, row: Row) -> int:
        """Output tokens so far."""
        return min(row["out"], row["base"] + floor(row["steps"] * self.advance))

    def kv(self, row: Row, ahead: int = 0) -> int:
        if row["computed"] < row["prompt"]:
            return self.in_blocks(row["prompt"])
        return self.in_blocks(row["prompt"] + floor((row["steps"] + ahead) * self.advance))

    def decoding(self) -> list[Row]:
        return [row for row in self.running if row["computed"] == row["prompt"]]

    def used(self, ahead: int) -> int:
        return sum(self.kv(r, ahead if r in self.decoding() else 0) for r in self.running)

    def fits(self, new: Row) -> bool:
        if self.blocks is None:
            return True
        if self.policy.admission is Admission.PROMPT:
            return self.used(0) + self.in_blocks(new["prompt"]) <= self.blocks
        if self.policy.admission is Admission.WHOLE:
            return (
                sum(self.in_blocks(r["in"] + r["out"]) for r in [*self.running, new]) <= self.blocks
            )
        if not self.running:
            return True
        share = max(self.ratio - (0.7 - 0.7 * 0.14) / 600 * self.ratio_age, 0.7 * 0.14)
        coming = sum(min(r["out"] - self.made(r), 4096) for r in self.decoding()) * share
        coming += sum(
            min(r["out"] - r["base"], 4096)
            for r in [*self.running, new]
            if r not in self.decoding()
        )
        total = self.used(0) + self.in_blocks(new["prompt"])
        return total + ceil(coming / self.policy.block_tokens) <= self.blocks

    def make_room(self) -> bool:
        went = False
        while self.blocks is not None and len(self.running) > 1 and self.used(1) > self.blocks:
            if self.policy.victim is Victim.NEWEST:
                row = self.running[-1]
            else:
                rows = reversed(self.decoding())
                row = min(rows, key=lambda r: (self.made(r), -r["in"]))
            self.running.remove(row)
            made = self.made(row)
            row.update(prompt=row["in"] + made, base=made, steps=0, computed=row["cached"])
            place = 0 if self.policy.victim is Victim.NEWEST else len(self.waiting)
            self.waiting.insert(place, row)
            self.preempted += 1
            went = True
        if went:
            rows = self.decoding()
            made = sum(self.made(r) for r in rows) + 20 * len(rows)
            self.ratio, self.ratio_age = min(1.0, made / max(sum(r["out"] for r in rows), 1)), 0
            self.full = False
        return went

    def choose(self) -> tuple[list[Row], list[tuple[Row, int]]]:
        """Who decodes, and how many tokens of which prompts are computed."""
        went = bool(self.policy.mixed and self.decoding() and self.make_room())
        budget = self.policy.max_step_tokens
        if self.policy.mixed:
            budget -= len(self.decoding()) * (1 + self.drafts)
        most = min(
            self.policy.max_sequences, max(self.policy.max_step_tokens // (1 + self.drafts), 1)
        )
        chunks = []
        for row in self.running:
            tokens = min(row["prompt"] - row["computed"], budget)
            if tokens > 0:
                chunks.append((row, tokens))
                budget -= tokens
        while not went and self.waiting and budget > 0 and len(self.running) < most:
            row = self.waiting[0]
            left = row["prompt"] - row["computed"]
            if not self.policy.chunked and self.running and left > budget:
                break
            # SGLang does not look again before somebody has left; for the others it is no change.
            if (self.full and self.policy.admission is Admission.ESTIMATE) or not self.fits(row):
                self.full = True
                break
            self.running.append(self.waiting.pop(0))
            chunks.append((row, min(left, budget)))
            budget -= min(left, budget)
        if self.policy.mixed:
            return [r for r in self.decoding() if r not in [c for c, _ in chunks]], chunks
        if chunks:
            return [], chunks
        self.make_room()
        return self.decoding(), []

    def batch(self, decode: list[Row], chunks: list[tuple[Row, int]]) -> Batch:
        context = sum(r["prompt"] + r["steps"] * self.advance for r in decode)
        prefill = sum(tokens for _, tokens in chunks)
        before = sum(tokens * row["computed"] for row, tokens in chunks)
        return Batch(
            len(decode),
            context / max(len(decode), 1),
            prefill,
            before / max(prefill, 1),
            self.drafts,
            max(len(chunks), 1),
        )

    def finish_step(
        self, decode: list[Row], chunks: list[tuple[Row, int]], clock: float
    ) -> list[Row]:
        done = []
        for row in decode:
            row["steps"] += 1
            row["gaps"].append(clock - row["last"])
            row["last"] = clock
            if row["base"] + floor(row["steps"] * self.advance + 1e-12) >= row["out"]:
                done.append(row)
        self.ratio_age += bool(decode)
        for row, tokens in chunks:
            row["computed"] += tokens
            if row["computed"] < row["prompt"]:
                continue
            row["base"] += 1
            if row["first"] is None:
                row["first"] = clock
            else:
                row["gaps"].append(clock - row["last"])
            row["last"] = clock
            if row["base"] >= row["out"]:
                done.append(row)
        for row in done:
            row["end"] = clock
            self.running.remove(row)
            self.full = False
        return done


def serve_plainly(
    step_seconds: Callable[[Batch], float],
    requests: list[Request],
    policy: EnginePolicy,
    concurrency: int | None,
    kv_tokens: int | None,
    dp: int = 1,
    advance: float = 1.0,
    drafts: int = 0,
    delay_s: float = 0.0,
) -> tuple[list[Row], int, int]:
    """(a row a request in order of arrival, steps, preemptions)."""
    engines = [PlainEngine(policy, kv_tokens, advance, drafts) for _ in range(dp)]
    order = requests if concurrency else sorted(requests, key=lambda r: r.arrival_s)
    rows = [
        {"in": r.input_len, "out": r.output_len, "cached": r.cached_len, "arrival": r.arrival_s}
        | {"prompt": r.input_len, "computed": r.cached_len, "base": 0, "steps": 0}
        | {"first": None, "last": None, "end": None, "gaps": [], "number": number}
        for number, r in enumerate(order)
    ]
    for row in rows if concurrency else []:
        row["arrival"] = 0.0 if row["number"] < concurrency else None
    sent, done, clock, steps = 0, 0, 0.0, 0
    while done < len(rows):
        while sent < len(rows) and (arrival := rows[sent]["arrival"]) is not None:
            if arrival + delay_s > clock:
                break
            engines[sent % dp].waiting.append(rows[sent])
            sent += 1
        if not any(e.waiting or e.running for e in engines):
            clock = rows[sent]["arrival"] + delay_s
            continue
        chosen = [engine.choose() for engine in engines]
        clock += max(
            step_seconds(engine.batch(*work)) if any(work) else 0.0
            for engine, work in zip(engines, chosen, strict=True)
        )
        steps += 1
        for engine, work in zip(engines, chosen, strict=True):
            for _ in engine.finish_step(*work, clock):
                done += 1
                if concurrency and done + concurrency <= len(rows):
                    rows[done + concurrency - 1]["arrival"] = clock
    return rows, steps, sum(engine.preempted for engine in engines)
