"""The serving engines that are installed here, and how this moeprof records each."""

from __future__ import annotations

import shutil
from collections.abc import Mapping

from moeprof.doctor.check import Check
from moeprof.doctor.plugin import FoundVllm
from moeprof.doctor.software import installed, release


def check_engines(vllm: FoundVllm | None, environment: Mapping[str, str]) -> list[Check]:
    """vLLM, SGLang, llama-cpp-python, llama.cpp. None of them is needed."""
    return [_vllm(vllm), _sglang(), _llama_cpp_python(), _llama_cpp(environment)]


def _vllm(vllm: FoundVllm | None) -> Check:
    if vllm is None:
        return _absent("vllm", "neither in this environment nor on PATH")
    found, upgrade = f"{vllm.version} ({vllm.where})", "upgrade it to 0.32 or later"
    numbers = release(vllm.version)
    if numbers and numbers < (0, 21):
        detail = f"{found}: returns no routed experts and is too old for the plugin"
        return Check("vllm", False, detail, remedy=upgrade)
    if numbers and numbers < (0, 32):
        detail = f"{found}: too old for the plugin; capture server --engine vllm works"
        return Check("vllm", False, detail, remedy=upgrade)
    tested = "" if numbers[:2] == (0, 32) else "; the plugin was tested with 0.32"
    return Check("vllm", True, f"{found}: capture vllm, start, stop, status{tested}")


def _sglang() -> Check:
    found = installed("sglang")
    if found is None:
        return _absent("sglang", "not in this environment")
    return Check("sglang", True, f"{found}: capture server --engine sglang")


def _llama_cpp_python() -> Check:
    found = installed("llama-cpp-python")
    if found is None:
        return _absent("llama-cpp-python", "not in this environment", "moeprof[llamacpp]")
    return Check("llama-cpp-python", True, f"{found}: capture llamacpp")


def _llama_cpp(environment: Mapping[str, str]) -> Check:
    found = shutil.which("llama-server", path=environment.get("PATH"))
    if found is None:
        return _absent("llama.cpp", "no llama-server on PATH")
    detail = f"{found}: its routing is not shown; capture llamacpp runs the same GGUF file"
    return Check("llama.cpp", True, detail)


def _absent(name: str, detail: str, package: str = "") -> Check:
    return Check(name, False, detail, remedy=f"pip install '{package}'" if package else "")
