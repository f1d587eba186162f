"""SGLang's expert distribution recorder: started, stopped and dumped over HTTP, then imported.

It sees all traffic, whoever sends it, but no requests. The dump lies on the server's disk
(sglang, srt/eplb/expert_distribution.py): modes `per_pass` and `per_token` write a file a rank, in
which the ranks that share their tokens repeat each other; `stat` writes one of all ranks.
"""

from __future__ import annotations

import os
import re
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from moeprof.capture.http import HttpClient, is_loopback
from moeprof.capture.prompts import Prompt, check_texts, read_prompts
from moeprof.capture.result import check_output
from moeprof.capture.server.asking import Asking, Served, server_address
from moeprof.capture.server.job import Progress
from moeprof.capture.server.models import served_model
from moeprof.capture.server.result import ServerCapture
from moeprof.capture.server.sglang import Sglang, server_arguments
from moeprof.capture.server.window import Window
from moeprof.errors import InputError, MoeprofError
from moeprof.model import MoEModel
from moeprof.trace import Phase, open_trace
from moeprof.trace.formats import ImportResult, import_trace

FOLDER_VARIABLE = "SGLANG_EXPERT_DISTRIBUTION_RECORDER_DIR"
_DUMPS = "expert_distribution_recorder_*.pt"
_RANK = re.compile(r"expert_distribution_recorder_[\d.]+?_(\d+)\.pt")
_APPEAR_S = 30.0  # until the first file is there: the ranks write on their own
_SETTLE_S = 0.5  # without a new or growing file they are done


def capture_recorder(
    url: str,
    output: str | Path,
    *,
    duration_s: float | None = None,
    prompts: str | Path | Sequence[Prompt] | None = None,
    dump_folder: str | Path | None = None,
    model: str | Path | MoEModel | None = None,
    asking: Asking | None = None,
    concurrency: int = 8,
    timeout_s: float = 600.0,
    token: str | None = None,
    token_ids: bool = False,
    force: bool = False,
    progress: Progress | None = None,
) -> ServerCapture:
    """Record all traffic of the SGLang server at `url` with its own recorder, as trace `output`.

    For `duration_s`, or while `prompts` are answered, or both. The dump is looked for in
    `dump_folder`, by default where a server on this machine puts it. A Ctrl-C stops the recorder
    and keeps what it has. Raises InputError before anything is started if the server was not
    launched for it, MoeprofError, which says what to fetch, if its disk is not this machine's.
    """
    if duration_s is None and prompts is None:
        raise InputError("the recorder runs for a duration or while prompts are answered: give one")
    asking = asking or Asking()
    wanted = read_prompts(prompts) if isinstance(prompts, str | Path) else list(prompts or ())
    check_texts(wanted)
    check_output(Path(output), force=force)
    url = server_address(url)
    with HttpClient(url, token=token, timeout_s=timeout_s) as client:
        arguments = server_arguments(client)
        _check_mode(client.url, arguments)
        served = Sglang().describe(client, None)
        known = _known_model(served, model)
        folder = _folder(client.url, dump_folder)
        before = _dumps(folder)
        traffic = _Traffic(served, asking, wanted, concurrency)
        try:
            client.read("POST", "/start_expert_distribution_record")
            with HttpClient(
                url, token=token, timeout_s=timeout_s, connections=concurrency
            ) as of_prompts:
                traffic.run(of_prompts, duration_s, progress)
        finally:  # also where the user interrupts, and where start was not answered
            client.read("POST", "/stop_expert_distribution_record")
            client.read("POST", "/dump_expert_distribution_record")
            files = _distinct(_new_dumps(folder, before), arguments)
            if files:
                imported = import_trace(
                    files, output, model=known, token_ids=token_ids, force=force
                )
    if not files:
        raise MoeprofError(_where_it_lies(client.url, folder, known, output))
    return _result(imported, served, known, files, traffic)


class _Traffic:
    """What runs while the recorder does: prompts of ours, the traffic of others, or both."""

    def __init__(
        self,
        served: Served,
        asking: Asking,
        prompts: Sequence[Prompt],
        concurrency: int,
    ) -> None:
        self.prompts = prompts
        self.failed: Counter[str] = Counter()
        self._served = served
        self._asking = asking
        self._concurrency = concurrency

    def run(self, client: HttpClient, duration_s: float | None, progress: Progress | None) -> None:
        """Until every prompt is answered and the duration is over."""
        started = time.monotonic()
        count = len(self.prompts)
        with Window(
            partial(self._ask, client),
            count,
            workers=self._concurrency,
            ahead=2 * self._concurrency,
            cancel=client.cancel,
        ) as window:
            for number, failure in window.results(lambda: False):
                self.failed += Counter([failure] if failure else [])
                if progress is not None:
                    progress(number + 1, count)
        if duration_s is not None:
            time.sleep(max(0.0, started + duration_s - time.monotonic()))

    def _ask(self, client: HttpClient, number: int) -> str | None:
        """Why prompt `number` failed, None if it did not."""
        path, body = Sglang().request(self._served, self._asking, self.prompts[number].text, number)
        try:
            client.read("POST", path, {**body, "return_routed_experts": False})
        except MoeprofError as error:
            return getattr(error, "kind", type(error).__name__)
        return None


def _check_mode(url: str, arguments: Mapping[str, Any]) -> None:
    """Starting a recorder that is not there ends SGLang's scheduler, so it is asked first."""
    if not arguments.get("expert_distribution_recorder_mode"):
        raise InputError(
            f"{url}: the server does not say that its recorder is on: start it with "
            "--expert-distribution-recorder-mode per_token (or stat, per_pass)"
        )
    if arguments.get("enable_eplb"):
        raise InputError(
            f"{url}: --enable-eplb needs the recorder itself, and stopping it would end the "
            "rebalancing: record a server without it"
        )


def _known_model(served: Served, model: str | Path | MoEModel | None) -> MoEModel | None:
    """The model if it can be known: the dump itself says most."""
    try:
        return served_model(served, model)
    except InputError:
        if model is not None:
            raise
        return None


def _folder(url: str, named: str | Path | None) -> Path | None:
    """Where dumps of the server appear on this machine, None if that cannot be known."""
    if named is not None:
        if not Path(named).is_dir():
            raise InputError(f"{named}: no such folder; dumps are looked for in it")
        return Path(named)
    if not is_loopback(url):
        return None
    return Path(os.environ.get(FOLDER_VARIABLE) or tempfile.gettempdir())


def _dumps(folder: Path | None) -> dict[Path, int]:
    """Size of every dump there."""
    sizes: dict[Path, int] = {}
    for path in [] if folder is None else sorted(folder.glob(_DUMPS)):
        try:
            sizes[path] = path.stat().st_size
        except OSError:  # gone meanwhile
            continue
    return sizes


def _new_dumps(folder: Path | None, before: Mapping[Path, int]) -> list[Path]:
    """Files that were not there before, once nothing is written to them any more."""
    if folder is None:
        return []
    deadline = time.monotonic() + _APPEAR_S
    seen: dict[Path, int] = {}
    while time.monotonic() < deadline:
        now = {path: size for path, size in _dumps(folder).items() if path not in before}
        if now and now == seen:
            break
        seen = now
        time.sleep(_SETTLE_S)
    return sorted(seen)


def _distinct(files: Sequence[Path], arguments: Mapping[str, Any]) -> list[Path]:
    """Of ranks that see the same tokens the first: those of a group of tensor parallelism."""
    tensor, data = arguments.get("tp_size"), arguments.get("dp_size")
    if not isinstance(tensor, int) or tensor < 1:
        return list(files)
    shared = tensor
    if arguments.get("enable_dp_attention") and isinstance(data, int) and 0 < data <= tensor:
        shared = tensor // data
    ranks = {file: _RANK.fullmatch(file.name) for file in files}
    return [f for f, rank in ranks.items() if rank is None or int(rank[1]) % shared == 0]


def _where_it_lies(
    url: str, folder: Path | None, model: MoEModel | None, output: str | Path
) -> str:
    looked = "" if folder is None else f" (not in {folder})"
    named = f" --model {model.name}" if model is not None else " --model MODEL"
    return (
        f"{url}: the dump is on the server's disk{looked}, in its {FOLDER_VARIABLE} or the "
        f"temporary folder: fetch {_DUMPS} from there, and run: "
        f"moeprof import {_DUMPS}{named} --output {output}"
    )


def _result(
    imported: ImportResult,
    served: Served,
    model: MoEModel | None,
    files: Sequence[Path],
    traffic: _Traffic,
) -> ServerCapture:
    by_phase = {Phase.PREFILL: 0, Phase.DECODE: 0}
    if not imported.counts_only:
        phase = open_trace(imported.path).phase
        by_phase = {kind: int((phase == kind).sum()) for kind in by_phase}
    skipped = [f"{count:,} x {reason}" for reason, count in imported.skipped.items()]
    failed = dict(sorted(traffic.failed.items()))
    return ServerCapture(
        path=imported.path,
        engine="sglang",
        engine_version=served.engine_version,
        model=served.name if model is None else model.name,
        prompts=len(traffic.prompts),
        requests=imported.requests,
        failed=failed,
        tokens=imported.tokens,
        dropped=0,
        prefill_tokens=by_phase[Phase.PREFILL],
        decode_tokens=by_phase[Phase.DECODE],
        notes=[f"read from {', '.join(map(str, files))}", *skipped, *imported.notes],
        problem=f"prompts failed: {', '.join(failed)}" if failed else None,
    )
