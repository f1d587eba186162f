"""The entry point: find the command, import it alone, run it, print its answer, map errors.

Only the command that was called is imported, and `--help` imports nothing: an eager Typer
application of this size takes longer to start than most commands take to run.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from moeprof import __version__
from moeprof.errors import InputError, MoeprofError

# verb: (module in moeprof.cli, what it does)
COMMANDS: dict[str, tuple[str, str]] = {
    "demo": ("demo", "record a small M3-architecture model and explain the recording"),
    "models list": ("models_list", "the architectures that moeprof knows by name"),
    "models show": ("models_show", "parameters, bytes an expert and KV bytes of a model"),
    "capture transformers": ("capture_transformers", "run a transformers model and record it"),
    "capture run": ("capture_run", "run your own script and record the models in it"),
    "capture stream": ("capture_stream", "record a model that does not fit, layer by layer"),
    "capture llamacpp": ("capture_llamacpp", "run a GGUF model in llama.cpp and record it"),
    "capture vllm": ("capture_vllm", "start your own vLLM server and record it"),
    "capture server": ("capture_server", "prompts to a running server, its own routing recorded"),
    "capture start": ("capture_start", "begin recording in a running server"),
    "capture stop": ("capture_stop", "end the recording in a running server"),
    "capture status": ("capture_status", "whether a running server records, and how much"),
    "live": ("live", "watch a server or a trace that is being written: load, hot experts, hits"),
    "import": ("import_files", "recordings of other programs to a trace"),
    "export": ("export", "a trace to what other programs read"),
    "slice": ("slice", "part of a trace, by request, label, phase, step or layer"),
    "merge": ("merge", "several traces of one model as one"),
    "redact": ("redact", "a trace without token ids and labels of requests"),
    "migrate": ("migrate", "a trace in the current schema"),
    "info": ("info", "what is in a trace"),
    "validate": ("validate", "check every invariant and checksum of a trace"),
    "synth": ("synth", "make up routing, by targets or like a recording"),
    "analyze load": ("analyze_load", "load by expert, layer, phase, label and over time"),
    "analyze locality": (
        "analyze_locality",
        "reuse over time, working sets, distinct experts by batch",
    ),
    "analyze affinity": (
        "analyze_affinity",
        "experts chosen together, and what a layer tells of the next",
    ),
    "analyze specialization": (
        "analyze_specialization",
        "do domains use different experts, which, and by chance",
    ),
    "analyze pruning": ("analyze_pruning", "experts that could go, be merged or be adapted"),
    "compare": ("compare", "two recordings or two results: what differs, and how sure that is"),
    "cache": ("cache", "hits and bytes of expert caches: any policy, scope and contract"),
    "cache verdict": ("cache_verdict", "is a cache too small or its policy wrong, in words"),
    "cache prefetch": ("cache_prefetch", "experts fetched ahead: what it saves and what it costs"),
    "cache curve": ("cache_curve", "exact LRU hits at every cache size"),
    "place": ("place", "which GPU holds which expert, judged on a later window"),
    "place sweep": ("place_sweep", "how many redundant experts, and what do they cost"),
    "place online": ("place_online", "rebalancing every N steps: what it saves and what it moves"),
    "place mix": ("place_mix", "a map fitted on one domain judged on the others, and one for all"),
    "place figures": ("place_figures", "a placement as PNG: GPUs, layers, redundancy, time, nodes"),
    "place export": ("place_export", "a placement as the file and flags that an engine loads"),
    "offload": ("offload", "expert slots, policy and speed where GPU memory is too small"),
    "advise": ("advise", "the cheapest deployments that meet targets, and their command lines"),
    "project": ("project", "will it fit: memory by tensor class, and a bound on decode speed"),
    "project gib": ("project_gib", "one GiB more on each GPU: as KV or as redundant experts"),
    "project routing": ("project_routing", "what a step's time hangs on routing, and on placement"),
    "serve-sim": ("serve_sim", "requests one by one: TTFT and TPOT as distributions, goodput"),
    "sweep": ("sweep", "a grid of deployments, in parallel, and its Pareto front"),
    "report": ("report", "one self-contained HTML page, and figures as PNG"),
    "doctor": ("doctor", "what works here, and what would stop a recording"),
    "hardware list": ("hardware_list", "the hardware profiles that come with moeprof"),
    "hardware show": ("hardware_show", "every figure of a machine or device with its source"),
    "hardware probe": ("hardware_probe", "measure this machine into a profile"),
}

INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code; errors end here, in one line each."""
    try:
        code = _dispatch(list(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()  # a full disk or a closed pipe shows itself here
        return code
    except MoeprofError as error:
        return _complain(str(error), error.exit_code)
    except KeyboardInterrupt:
        return _complain("interrupted", INTERRUPTED)
    except BrokenPipeError:  # the reader, `head` say, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:  # a full disk, a folder that may not be written
        place = f"{error.filename}: " if error.filename else ""
        return _complain(f"{place}{error.strerror or error}", MoeprofError.exit_code)


def _dispatch(arguments: list[str]) -> int:
    if arguments[:1] == ["--version"]:
        return _print(f"moeprof {__version__}")
    verb = find_verb(arguments)
    rest = arguments[len(verb.split()) :]
    if verb in COMMANDS:
        return _run(verb, rest)
    if not rest or rest[0] in ("--help", "-h"):
        return _print(overview(verb))
    words = f"{verb} {rest[0]}".strip()
    help_command = f"moeprof {verb}".strip() + " --help"
    raise InputError(f"no command '{words}'{_nearest(words)}; see {help_command}")


def find_verb(arguments: Sequence[str]) -> str:
    """The longest leading words that name a command, else a group of commands, else ''."""
    for length in (2, 1):
        verb = " ".join(arguments[:length])
        if verb in COMMANDS and len(arguments) >= length:
            return verb
    group = arguments[0] if arguments else ""
    return group if any(verb.startswith(f"{group} ") for verb in COMMANDS) else ""


def overview(group: str = "") -> str:
    """The commands, or those of one group, a line each."""
    chosen = {v: line for v, (_, line) in COMMANDS.items() if v.startswith(f"{group} ".lstrip())}
    width = max(map(len, chosen))
    usage = f"Usage: moeprof {group or 'COMMAND'} ... [--json] [--quiet]"
    head = [] if group else ["Record where a Mixture-of-Experts model sends its tokens.", ""]
    lines = [f"  {verb:<{width}}  {line}" for verb, line in chosen.items()]
    tail = ["", "moeprof COMMAND --help tells more. First time: moeprof demo"]
    return "\n".join([usage, "", *head, *lines, *([] if group else tail)])


def _run(verb: str, arguments: list[str]) -> int:
    started = time.perf_counter()
    answer = _call(verb, arguments)
    if answer == INTERRUPTED:  # newer Typers turn Ctrl-C into this exit code themselves
        raise KeyboardInterrupt
    if isinstance(answer, int):  # Typer printed the help and exited
        return answer
    answer.show(verb, time.perf_counter() - started)
    code: int = answer.exit_code
    return code


def _call(verb: str, arguments: list[str]) -> Any:
    """What the command's `run` returns: an Answer, or Typer's exit code for --help."""
    import typer

    module = import_module(f"moeprof.cli.{COMMANDS[verb][0]}")
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    settings = getattr(module, "CONTEXT_SETTINGS", None)
    app.command(help=module.__doc__, context_settings=settings)(module.run)
    try:
        return app(arguments, prog_name=f"moeprof {verb}", standalone_mode=False)
    except typer.Abort:
        raise KeyboardInterrupt from None
    except Exception as error:
        # Usage errors: Typer's own since 0.16, click's before, alike in what they can do.
        if not hasattr(error, "show") or not hasattr(error, "exit_code"):
            raise
        error.show()
        return int(error.exit_code)


def _nearest(words: str) -> str:
    from difflib import get_close_matches

    near = get_close_matches(words, COMMANDS, n=1)
    return f", did you mean '{near[0]}'?" if near else ""


def _print(text: str) -> int:
    sys.stdout.write(text + "\n")
    return 0


def _complain(message: str, code: int) -> int:
    sys.stderr.write(f"moeprof: {message}\n")
    return code


def script() -> None:
    """The console script."""
    sys.stdout, sys.stderr = _writable(sys.stdout), _writable(sys.stderr)
    sys.exit(main())


def _writable(stream: Any) -> Any:
    """`stream`, or nowhere if it was closed; a character it cannot encode does not end us."""
    if stream is None:
        return open(os.devnull, "w")
    stream.reconfigure(errors="replace")
    return stream
