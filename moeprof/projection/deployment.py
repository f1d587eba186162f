"""One deployment: does it fit, for how many requests, and what bounds its decode speed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from moeprof.errors import InputError
from moeprof.hardware import Cluster, load_hardware
from moeprof.model import MoEModel, Precision, load_model
from moeprof.projection.bounds import decode_bound, decode_read_bytes
from moeprof.projection.memory import MemoryLedger, project_memory
from moeprof.quantity import Quantity
from moeprof.result import Result


@dataclass(frozen=True)
class DeploymentProjection(Result):
    """Memory of the fullest rank, and the bound on decode at batch 1.

    `memory` holds bytes by class and their `total`; `ledger` the same with provenance and source.
    `max_concurrency` is how many requests of this length fit at a time, with their KV and states.
    """

    concurrency: int
    input_len: int  # tokens
    output_len: int  # tokens
    fits: bool
    memory: Mapping[str, float] = field(hash=False)
    max_concurrency: int | None  # None where the length of requests is not given
    ledger: MemoryLedger
    decode_read: Quantity  # bytes of weights that one step reads over all GPUs
    decode_bound: Quantity  # steps/s, an upper bound


def project_deployment(
    model: MoEModel | str | Path,
    hardware: Cluster | str,
    *,
    precision: str | Mapping[str, str] | Precision = "bf16",
    tp: int | None = None,
    ep: int = 1,
    dp: int = 1,
    kv_dtype: str = "bf16",
    index_dtype: str = "bf16",
    concurrency: int = 1,
    input_len: int = 0,
    output_len: int = 0,
    mtp: bool = False,
) -> DeploymentProjection:
    """Memory and bounds of `model` on `hardware` with `concurrency` requests at a time.

    Every request is counted at its full length, `input_len` + `output_len` tokens. `tp` is all
    GPUs over `dp` if None. `mtp` loads the modules for multi-token prediction. Raises InputError
    for values out of range; what does not fit is an answer, not an error.
    """
    model, cluster = load_model(model), load_hardware(hardware)
    for name, value in (("input_len", input_len), ("output_len", output_len)):
        if value < 0:
            raise InputError(f"{name} is {value}, it must be at least 0")
    if concurrency < 1 or dp < 1:
        raise InputError(f"concurrency {concurrency} and dp {dp} must be at least 1")
    length, sequences = input_len + output_len, -(-concurrency // dp)
    ledger = project_memory(
        model,
        cluster,
        precision=precision,
        tp=cluster.gpus // dp if tp is None else tp,
        ep=ep,
        dp=dp,
        kv_dtype=kv_dtype,
        index_dtype=index_dtype,
        tokens=sequences * length,
        sequences=sequences,
        mtp=mtp,
    )
    sizes = {name: size.value for name, size in ledger.classes.items()}
    return DeploymentProjection(
        concurrency=concurrency,
        input_len=input_len,
        output_len=output_len,
        fits=ledger.fits,
        memory=sizes | {"total": ledger.total.value},
        max_concurrency=None if ledger.max_sequences is None else ledger.max_sequences * dp,
        ledger=ledger,
        decode_read=decode_read_bytes(model, precision, model.top_k),
        decode_bound=decode_bound(model, cluster, precision, model.top_k),
    )
