"""All checks, in the order in which they are shown."""

from __future__ import annotations

from collections.abc import Mapping
from os import environ
from pathlib import Path

from moeprof.doctor.check import DoctorResult
from moeprof.doctor.engines import check_engines
from moeprof.doctor.gpu import check_gpus
from moeprof.doctor.machine import check_limits
from moeprof.doctor.output import check_output
from moeprof.doctor.plugin import check_plugin, look_for_vllm
from moeprof.doctor.server import check_server
from moeprof.doctor.software import check_software


def run_doctor(
    output: str | Path = ".",
    *,
    url: str | None = None,
    token: str | None = None,
    environment: Mapping[str, str] | None = None,
) -> DoctorResult:
    """Look at this machine, at the folder that traces would go to, and at the server at `url`.

    Nothing is changed; a scratch file in `output`, of at most 32 MiB, is removed again. Of a vLLM
    server one token is asked for, to see whether it returns routed experts.
    """
    environment = environ if environment is None else environment
    vllm = look_for_vllm(environment)
    return DoctorResult.of(
        [
            *check_software(),
            check_gpus(),
            *check_engines(vllm, environment),
            *check_plugin(vllm, environment),
            *check_limits(),
            *check_output(Path(output)),
            *(check_server(url, token) if url else []),
        ]
    )
