"""AIConfigurator's answer for every served row, as it is shipped: nothing is fitted or chosen here.

    python -m venv aic && aic/bin/pip install aiconfigurator==0.12.0
    aic/bin/python benchmarks/aiconfigurator_predict.py

Needs an environment of its own (850 MB) and imports nothing of moeprof. Writes
data/aiconfigurator_served.csv, with an answer or the reason there is none for each row of TABLES
and each way of asking: `row`, number formats as the row states them, those of the checkpoint where
there are no tables of them; `checkpoint`, formats as the checkpoint stores them; both in silicon
mode (kernels that NVIDIA measured, no gaps filled); and `hybrid`, gaps filled, where `row` has no
answer. Each row becomes one aggregated deployment, with the engine version that the package takes
for the system, which is newer than the one measured. The batch is the concurrency of one attention
rank. Then the answers for what published bests of a sweep may have tried (served/frontier.py).
"""

from __future__ import annotations

import csv
import logging
import re
import sys
from collections.abc import Iterator
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import NamedTuple

from aiconfigurator.cli import api
from aiconfigurator.sdk import perf_database

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.served.frontier import candidates, load_bests

DATA = Path(__file__).parent / "data"
TABLES = ("served_points", "m3_serving", "throughput_points")
FIELDS = ["id", "asked", "version", "checkpoint", "gemm", "moe", "kv"]
FIELDS += ["ttft_ms", "tpot_ms", "problem"]

# (model, precision) of a row to the checkpoint that AIConfigurator knows, and number formats where
# it knows none that stores them. DeepSeek V3, R1 and V3.1 are one architecture.
CHECKPOINTS: dict[tuple[str, str], tuple[str, str, str]] = {
    ("deepseek-ai/DeepSeek-R1", "fp8"): ("deepseek-ai/DeepSeek-R1", "", ""),
    ("deepseek-ai/DeepSeek-R1", "fp4"): ("nvidia/DeepSeek-V3.1-NVFP4", "", ""),
    ("deepseek-ai/DeepSeek-V3", "fp8"): ("deepseek-ai/DeepSeek-V3", "", ""),
    ("deepseek-ai/DeepSeek-V3", "fp4"): ("nvidia/DeepSeek-V3.1-NVFP4", "", ""),
    ("meta-llama/Llama-3.1-70B", "fp8"): ("nvidia/Llama-3.1-70B-Instruct-FP8", "", ""),
    ("meta-llama/Llama-3.1-70B", "fp4"): ("meta-llama/Meta-Llama-3.1-70B", "nvfp4", ""),
    ("MiniMaxAI/MiniMax-M2.5", "fp8"): ("MiniMaxAI/MiniMax-M2.5", "", ""),
    ("MiniMaxAI/MiniMax-M2.5", "fp4"): ("nvidia/MiniMax-M2.5-NVFP4", "", ""),
    ("MiniMaxAI/MiniMax-M3", "bf16"): ("MiniMaxAI/MiniMax-M3", "", ""),
    ("MiniMaxAI/MiniMax-M3", "mxfp8"): ("MiniMaxAI/MiniMax-M3", "fp8_block", "fp8_block"),
    ("MiniMaxAI/MiniMax-M3", "mxfp4"): ("MiniMaxAI/MiniMax-M3", "bfloat16", "w4a16_mxfp4"),
    ("MiniMaxAI/MiniMax-M3", "nvfp4"): ("nvidia/MiniMax-M3-NVFP4", "", ""),
    ("moonshotai/Kimi-K2.5", "int4"): ("moonshotai/Kimi-K2.5", "", ""),
    ("moonshotai/Kimi-K2.5", "fp4"): ("nvidia/Kimi-K2.5-NVFP4", "", ""),
    ("openai/gpt-oss-120b", "fp4"): ("openai/gpt-oss-120b", "", ""),
    ("openai/gpt-oss-120b", "mxfp4"): ("openai/gpt-oss-120b", "", ""),
    ("Qwen/Qwen3-235B-A22B", "bf16"): ("Qwen/Qwen3-235B-A22B", "", ""),
    ("Qwen/Qwen3.5-397B-A17B", "bf16"): ("Qwen/Qwen3.5-397B-A17B", "", ""),
    ("Qwen/Qwen3.5-397B-A17B", "fp8"): ("Qwen/Qwen3.5-397B-A17B", "fp8_block", "fp8_block"),
    ("Qwen/Qwen3.5-397B-A17B", "fp4"): ("nvidia/Qwen3.5-397B-A17B-NVFP4", "", ""),
    ("zhipuai/GLM-5", "fp8"): ("zai-org/GLM-5-FP8", "", ""),
    ("zhipuai/GLM-5", "fp4"): ("nvidia/GLM-5-NVFP4", "", ""),
}
SYSTEMS = {"rtx_pro_6000": "rtx_pro_6000_server"}  # where its name is not the row's


class Question(NamedTuple):
    """One deployment under one load; rows that are copies ask the same."""

    checkpoint: str
    gemm: str
    moe: str
    system: str
    engine: str
    tp: int
    dp: int
    moe_tp: int
    moe_ep: int
    input_len: int
    output_len: int
    concurrency: int
    mode: str


def main() -> None:
    """Answer every row, in order; progress on stderr."""
    logging.disable(logging.WARNING)
    # It reads the same files anew at each call: the tables of an engine on a system never change.
    perf_database.get_database_view = cache(perf_database.get_database_view)
    rows = list(read_rows())
    with (DATA / "aiconfigurator_served.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
        writer.writeheader()
        for place, row in enumerate(rows):
            for asked, said in answers(row).items():
                if "tpot_ms" in said or not row["id"].startswith("sweep"):
                    writer.writerow({"id": row["id"], "asked": asked, **said})
            print(f"\r{place + 1} of {len(rows)}", end="", file=sys.stderr)


def read_rows() -> Iterator[dict[str, str]]:
    """Lines of all tables, then what the published bests of a sweep may have tried."""
    for name in TABLES:
        with (DATA / f"{name}.csv").open(newline="") as file:
            yield from csv.DictReader(file)
    for machine in dict.fromkeys(point.machine for point in load_bests()):
        for rows in candidates(machine):
            yield from ({name: str(each) for name, each in asdict(row).items()} for row in rows)


def answers(row: dict[str, str]) -> dict[str, dict[str, object]]:
    """Fields of an answer by how it was asked; `problem` alone where it cannot be."""
    if row.get("problem"):
        return {"row": {"problem": f"not asked: {row['problem']}"}}
    known = CHECKPOINTS.get((row["model"], row["precision"]))
    if known is None:
        return {"row": {"problem": f"no checkpoint of {row['model']} in {row['precision']}"}}
    checkpoint, gemm, moe = known
    ways = [(row["gemm"] or gemm, row["moe"] or moe), (row["gemm"] or gemm, moe), (gemm, moe)]
    found = {
        "row": first_answer(row, checkpoint, ways, "SILICON"),
        "checkpoint": first_answer(row, checkpoint, ways[-1:], "SILICON"),
    }
    if "problem" in found["row"]:
        found["hybrid"] = first_answer(row, checkpoint, ways, "HYBRID")
    return found


def first_answer(
    row: dict[str, str], checkpoint: str, ways: list[tuple[str, str]], mode: str
) -> dict[str, object]:
    """The first way of asking, formats of dense weights and of experts, that has an answer.

    The problem is that of the last way.
    """
    counts = ["tp", "dp", "moe_tp", "moe_ep", "input_len", "output_len", "concurrency"]
    system = SYSTEMS.get(row["hardware"], row["hardware"])
    rest = (system, row["engine"], *(int(row[name]) for name in counts), mode)
    said = [ask(Question(checkpoint, *way, *rest)) for way in dict.fromkeys(ways)]
    return next((each for each in said if "tpot_ms" in each), said[-1])


@cache
def ask(question: Question) -> dict[str, object]:
    """Its time to first token and time per output token, in ms, or its problem."""
    said: dict[str, object] = {"checkpoint": question.checkpoint}
    if question.concurrency % question.dp:
        return {**said, "problem": "concurrency is no multiple of the attention ranks"}
    try:
        said["version"] = newest(question.system, question.engine)
        found = api.cli_estimate(
            question.checkpoint,
            question.system,
            backend_name=question.engine,
            backend_version=str(said["version"]),
            database_mode=question.mode,
            isl=question.input_len,
            osl=question.output_len,
            batch_size=question.concurrency // question.dp,
            tp_size=question.tp,
            attention_dp_size=question.dp,
            moe_tp_size=question.moe_tp,
            moe_ep_size=question.moe_ep,
            gemm_quant_mode=question.gemm or None,
            moe_quant_mode=question.moe or None,
        )
    except Exception as error:  # whatever it refuses with is the answer
        return {**said, "problem": reason(error)}
    formats = {"gemm": "gemm", "moe": "moe", "kv": "kvcache"}
    return {
        **said,
        **{name: found.raw[field] for name, field in formats.items()},
        "ttft_ms": f"{found.ttft:.3f}",
        "tpot_ms": f"{found.tpot:.4f}",
    }


@cache
def newest(system: str, engine: str) -> str:
    """The version of an engine whose kernels it has on a system."""
    version = perf_database.get_latest_database_version(system=system, backend=engine)
    if version is None:
        raise LookupError(f"no tables of {engine} on {system}")
    return str(version)


def reason(error: Exception) -> str:
    """Its own first sentence, without the path of its installation."""
    text = re.sub(r"( at)? /\S+", "", " ".join(str(error).split()))
    return f"{type(error).__name__}: {text.split('. ')[0]}"


if __name__ == "__main__":
    main()
