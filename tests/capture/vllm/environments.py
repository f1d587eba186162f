"""An environment with plugins for vLLM in it, and a program that stands for its server."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from moeprof.capture.vllm.plugins import ENDPOINT, GENERAL

# Writes a trace of 40 tokens as the plugin would, says what it was given, ends as it is told.
SERVER = """#!{python}
import json, os, pathlib, sys
from moeprof.capture.live_options import LiveOptions
options = LiveOptions.from_environment()
print("given", json.dumps(sys.argv[1:]), os.environ["VLLM_PLUGINS"], options.max_bytes)
from moeprof.model import MoEModel
from moeprof.trace import TraceWriter, synthesize_rows
from tests.conftest import small_config
model = MoEModel.from_config(small_config())
rows, requests = synthesize_rows(model, 40, requests=2)
with TraceWriter(options.path, model, force=options.force) as writer:
    writer.write(rows)
    for request in requests:
        writer.put_request(request)
    writer.drop(3, "queue full")
sys.exit(5 if "--fail" in sys.argv else 0)
"""


def install_plugins(folder: Path, groups: Mapping[str, Sequence[str]]) -> Path:
    """`folder`, as a place of packages whose metadata names plugins by group."""
    info = folder / "plugins_for_tests-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: plugins-for-tests\nVersion: 1.0\n")
    lines = [f"[{g}]\n" + "".join(f"{n} = x:y\n" for n in names) for g, names in groups.items()]
    (info / "entry_points.txt").write_text("\n".join(lines))
    return folder


def make_environment(folder: Path) -> dict[str, str]:
    """Variables under which `vllm` is SERVER and moeprof's plugin is installed."""
    root = Path(__file__).parents[3]
    site = install_plugins(folder / "site", {GENERAL: ["moeprof"], ENDPOINT: ["moeprof"]})
    vllm = folder / "bin" / "vllm"
    vllm.parent.mkdir()
    vllm.write_text(SERVER.format(python=sys.executable))
    vllm.chmod(0o755)
    return {
        "PATH": f"{vllm.parent}:/usr/bin:/bin",
        "PYTHONPATH": f"{site}:{root}",
        "HOME": str(folder),
    }
