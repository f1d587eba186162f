"""`capture vllm`: the user's own server, started with the plugin, and what it left."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from moeprof.capture.child import run_child
from moeprof.capture.failure import logger
from moeprof.capture.live_options import OPTIONS_VARIABLE, OUTPUT_VARIABLE, LiveOptions
from moeprof.capture.naming import KEY_VARIABLE
from moeprof.capture.vllm.plugins import (
    PLUGINS_VARIABLE,
    Plugins,
    find_vllm,
    interpreter_of,
    list_plugins,
)
from moeprof.errors import InputError, TraceError
from moeprof.result import Result
from moeprof.trace import describe_trace, open_trace
from moeprof.trace.folder import refuse_existing

# Variables that vLLM hands to workers on Ray, beside its own (vllm/ray/ray_env.py, 0.32).
RAY_VARIABLE = "VLLM_RAY_EXTRA_ENV_VARS_TO_COPY"


@dataclass(frozen=True)
class ServedResult(Result):
    """What became of a server and of its recording. Counts are tokens."""

    exit_code: int  # of the server
    command: list[str]
    path: str | None  # None: no trace was begun
    tokens: int = 0
    dropped: int = 0  # seen and not recorded
    prefill_tokens: int = 0
    decode_tokens: int = 0
    requests: int = 0
    sampled_out: int = 0
    rotated: int = 0
    writers: int = 0  # ranks that wrote a trace each
    dropped_by_reason: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def capture_vllm(
    arguments: Sequence[str],
    output: str | Path,
    *,
    stdout: int | None = None,
    environment: Mapping[str, str] | None = None,
    **options: Any,
) -> ServedResult:
    """Run `vllm serve ARGUMENTS` with recording on, from its start to its end.

    `arguments` may begin with a command of their own (`vllm`, `python -m ...`, a path); else they
    are `vllm serve`'s. `options` are those of LiveOptions. `stdout` is a file descriptor for the
    server's.

    Raises InputError, before anything starts, if there is no vLLM, if it would not load the
    plugin, or if `output` or an option cannot be used.
    """
    known = os.environ if environment is None else environment
    path = Path(output).absolute()
    asked = LiveOptions.parse({**options, "output": str(path)})
    refuse_existing(path, asked.force)
    _refuse_unwritable(path)
    command = server_command(arguments)
    environment = {
        **known,
        OUTPUT_VARIABLE: str(path),
        OPTIONS_VARIABLE: json.dumps(asked.model_dump(mode="json", exclude={"output"})),
        RAY_VARIABLE: _for_ray(known.get(RAY_VARIABLE, "")),
        **_naming_ours(command, known),
    }
    code = run_child(command, environment, stdout=stdout)
    return describe_served(code, command, path)


def server_command(arguments: Sequence[str]) -> list[str]:
    """The command line that `arguments` stand for. Raises InputError if there is no vLLM."""
    if not arguments:
        raise InputError("nothing to start: moeprof capture vllm -- MODEL [vllm serve arguments]")
    first = arguments[0]
    if first != "vllm" and first != "serve" and shutil.which(first):
        return list(arguments)
    found = find_vllm()
    if found is None:
        raise InputError(
            "no vllm command here or on PATH: pip install vllm, or give a whole command, "
            "moeprof capture vllm -- /path/to/vllm serve MODEL"
        )
    rest = list(arguments[1:] if first == "vllm" else arguments)
    return [found, *([] if first in ("vllm", "serve") else ["serve"]), *rest]


def describe_served(code: int, command: Sequence[str], path: Path) -> ServedResult:
    """What a server that ended with `code` left at `path`."""
    if not path.exists():
        return ServedResult(code, list(command), None)
    try:
        info = describe_trace(open_trace(path))
    except TraceError as error:  # killed before it had written what the trace is of
        return ServedResult(code, list(command), None, problems=[str(error)])
    return ServedResult(
        exit_code=code,
        command=list(command),
        path=str(path),
        tokens=info.tokens,
        dropped=sum(info.dropped.values()),
        prefill_tokens=info.prefill_tokens,
        decode_tokens=info.decode_tokens,
        requests=info.requests,
        sampled_out=info.tokens_sampled_out,
        rotated=info.rotated_tokens,
        writers=len(list(path.glob("ranks/*"))) or 1,
        dropped_by_reason=dict(info.dropped),
        problems=list(info.problems),
    )


def _for_ray(current: str) -> str:
    """What workers on other machines need to know to record."""
    ours = [OUTPUT_VARIABLE, OPTIONS_VARIABLE, KEY_VARIABLE]
    return ",".join([*([current] if current else []), *ours])


def _naming_ours(command: Sequence[str], environment: Mapping[str, str]) -> dict[str, str]:
    """`VLLM_PLUGINS` for `command`. Raises InputError if its environment lacks our plugin.

    Where that environment is not seen the variable stays as it is: naming ours alone would keep
    the others from loading.
    """
    current = environment.get(PLUGINS_VARIABLE)
    python = interpreter_of(command)
    plugins = list_plugins(python, environment) if python else None
    if plugins is None:
        logger.warning("cannot see whether moeprof is installed where %s runs", command[0])
        return {} if current is None else {PLUGINS_VARIABLE: Plugins().variable(current)}
    if not plugins.records:
        raise InputError(
            f"moeprof is not installed where vLLM is: {python} -m pip install moeprof"
            if plugins.moeprof is None
            else f"the moeprof {plugins.moeprof} beside vLLM has no plugin for it: "
            f"{python} -m pip install --upgrade moeprof"
        )
    if opened := plugins.opened_by(current):
        logger.warning(
            "naming all plugins also adds the HTTP routes of %s; set %s to choose",
            ", ".join(opened),
            PLUGINS_VARIABLE,
        )
    return {PLUGINS_VARIABLE: plugins.variable(current)}


def _refuse_unwritable(path: Path) -> None:
    """InputError if the trace could not be made; the server would only find out later."""
    parent = next(folder for folder in path.parents if folder.exists())
    try:
        tempfile.TemporaryFile(dir=parent).close()
    except OSError as error:
        raise InputError(f"{path}: cannot write to {parent}: {error.strerror}") from None
