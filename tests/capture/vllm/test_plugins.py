"""Which plugins a vLLM would load, and what VLLM_PLUGINS must name."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from moeprof.capture.vllm.plugins import ENDPOINT, GENERAL, Plugins, interpreter_of, list_plugins
from tests.capture.vllm.environments import install_plugins

PLATFORM = "vllm.platform_plugins"
INSTALLED = Plugins(
    {
        GENERAL: ["lora_filesystem_resolver", "lora_hf_hub_resolver", "models", "moeprof"],
        PLATFORM: ["npu"],
        ENDPOINT: ["admin", "moeprof"],
    },
    "0.32.0",
    "0.1.0",
)


def loaded(plugins: Plugins, variable: str | None) -> dict[str, set[str]]:
    """What vLLM 0.32 loads (plugins/__init__.py): by group, with VLLM_PLUGINS as given."""
    named = None if variable is None else variable.split(",")
    found = {
        group: {n for n in names if (named is None and group != ENDPOINT) or n in (named or [])}
        for group, names in plugins.groups.items()
    }
    # lora_resolvers/hf_hub_resolver.py: registered, and without effect unless it is named
    if named is None:
        found[GENERAL] -= {"lora_hf_hub_resolver"}
    return found


@pytest.mark.parametrize("current", [None, "", "models", "npu,admin", "moeprof", "models,moeprof"])
def test_ours_is_added_and_nothing_else_changes(current: str | None) -> None:
    before, after = (loaded(INSTALLED, v) for v in (current, INSTALLED.variable(current)))
    assert "moeprof" in after[GENERAL] and "moeprof" in after[ENDPOINT]
    assert {g: n - {"moeprof"} for g, n in after.items()} == {
        g: n - {"moeprof"} for g, n in before.items()
    }


def test_routes_that_come_along_are_named() -> None:
    both = Plugins({GENERAL: ["moeprof", "admin"], ENDPOINT: ["moeprof", "admin"]})
    assert both.opened_by(None) == ["admin"]
    assert both.opened_by("moeprof") == both.opened_by("admin") == INSTALLED.opened_by(None) == []


def test_an_environment_says_what_is_in_it(tmp_path: Path) -> None:
    install_plugins(tmp_path, {GENERAL: ["moeprof", "x"], ENDPOINT: ["moeprof"]})
    found = list_plugins(sys.executable, {**os.environ, "PYTHONPATH": str(tmp_path)})
    assert found is not None and found.records
    assert set(found.groups[GENERAL]) >= {"moeprof", "x"}
    assert list_plugins(str(tmp_path / "no-python")) is None
    assert list_plugins("false") is None and list_plugins("true") is None


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (f"#!{sys.executable}\n", sys.executable),
        (f"#!{sys.executable} -s\n", sys.executable),
        (f"#!/bin/sh\n'''exec' {sys.executable} \"$0\" \"$@\"\n' '''\n", sys.executable),
        (f"#!/bin/sh\n'''exec' \"{sys.executable}\" \"$0\" \"$@\"\n' '''\n", sys.executable),
        ("#!/bin/sh\nexec something\n", None),
        ("#!/bin/sh", None),
        ("", None),
        ("\x7fELF\x00\xff", None),
    ],
)
def test_the_python_of_a_script(tmp_path: Path, content: str, expected: str | None) -> None:
    script = tmp_path / "vllm"
    script.write_bytes(content.encode("latin-1"))
    script.chmod(0o755)
    assert interpreter_of([str(script), "serve"]) == expected


def test_the_python_of_a_command(tmp_path: Path) -> None:
    assert interpreter_of([sys.executable, "-m", "x"]) == sys.executable
    assert interpreter_of(["sh", "-c", "x"]) is None
    assert interpreter_of([str(tmp_path / "none")]) is None
