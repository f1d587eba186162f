"""A real vLLM server on the CPU, and clients that put it under load."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[3]
PYTHON = os.environ.get("MOEPROF_VLLM_PYTHON", sys.executable)
START_SECONDS = 900.0  # of a busy machine

# vLLM hands out experts only with its second model runner, which needs Triton, which has no CPU
# backend on PyPI: Triton's own interpreter stands in for it.
TRITON_INTERPRETER = """
import os, types
os.environ["TRITON_INTERPRET"] = "1"
import triton.backends
class Driver:
    @staticmethod
    def is_active(): return True
triton.backends.backends.setdefault("cpu", types.SimpleNamespace(driver=Driver, compiler=None))
"""


class Server:
    """One server process; `call` talks to it."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, log: Path) -> None:
        self.process = process
        self.log = log
        self._url = f"http://127.0.0.1:{port}"

    def call(self, path: str, body: Any = None, *, timeout: float = 120.0, **headers: str) -> Any:
        """GET, or POST of `body`, and the JSON that comes back, of errors too."""
        with self.open(path, body, timeout=timeout, **headers) as answer:
            return json.load(answer)

    def open(self, path: str, body: Any = None, *, timeout: float = 120.0, **headers: str) -> Any:
        """The open answer."""
        data = None if body is None else json.dumps(body).encode()
        known = {"Content-Type": "application/json"}
        known |= {name.replace("_", "-"): value for name, value in headers.items()}
        request = urllib.request.Request(self._url + path, data, known)
        try:
            return urllib.request.urlopen(request, timeout=timeout)
        except urllib.error.HTTPError as error:
            return error

    def complete(self, name: str, prompt: list[int], tokens: int, **more: Any) -> dict[str, Any]:
        """What the server makes of token ids, with the ids of what it generates."""
        body = {
            "model": "tiny",
            "prompt": prompt,
            "max_tokens": tokens,
            "temperature": 0,
            "ignore_eos": True,
            "return_token_ids": True,
        }
        answer: dict[str, Any] = self.call("/v1/completions", body | more, X_Request_Id=name)
        return answer

    def stream(
        self, name: str, prompt: list[int], tokens: int, stop_after: int | None = None
    ) -> int:
        """Number of chunks of a streamed answer; the client hangs up after `stop_after`."""
        body = {
            "model": "tiny",
            "prompt": prompt,
            "max_tokens": tokens,
            "ignore_eos": True,
            "stream": True,
        }
        chunks = 0
        with self.open("/v1/completions", body, X_Request_Id=name) as answer:
            for line in answer:
                chunks += line.startswith(b"data: {")
                if chunks == stop_after:
                    break
        return chunks

    def status(self) -> dict[str, Any]:
        """What the plugin says."""
        answer: dict[str, Any] = self.call("/moeprof/status")
        return answer

    def settled(self) -> dict[str, Any]:
        """The status once its counts stand still: the writer is a moment behind the model."""
        before = None
        for _ in range(100):
            now = self.status()
            counts = (now["tokens"], now["dropped"], now["steps"])
            if counts == before:
                return now
            before = counts
            time.sleep(0.7)
        raise AssertionError("the counts never stood still")

    def stop(self) -> None:
        """SIGTERM, and wait."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL to it and its workers at once, as a machine that fails would."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def _end(self, how: int) -> None:
        if self.process.poll() is None:
            self.process.send_signal(how)
            try:
                self.process.wait(60)
            except subprocess.TimeoutExpired:
                self.kill()


@contextmanager
def serving(
    model: Path, work: Path, *arguments: str, second_runner: bool = False, **environment: str
) -> Iterator[Server]:
    """A server of `model` that answers; what it says goes to a file in `work`."""
    port = free_port()
    log = work / f"server-{port}.log"
    path = [str(ROOT)]
    known = {
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        "VLLM_CACHE_ROOT": str(work.parent / "vllm-cache"),
    }
    if second_runner:
        shim = work / "shim"
        shim.mkdir()
        (shim / "sitecustomize.py").write_text(TRITON_INTERPRETER)
        path.insert(0, str(shim))
        known["VLLM_USE_V2_MODEL_RUNNER"] = "1"
    known["PYTHONPATH"] = os.pathsep.join(path)
    command = [PYTHON, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)]
    command += ["--served-model-name", "tiny", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--dtype", "float32", "--max-model-len", "512", "--max-num-seqs", "16"]
    with log.open("wb") as out:
        process = subprocess.Popen(
            [*command, *arguments],
            env={**os.environ, **known, **environment},
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    server = Server(process, port, log)
    try:
        wait_until_up(server)
        yield server
    finally:
        server.stop()


def wait_until_up(server: Server) -> None:
    """AssertionError with the end of its log if it does not come up."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if server.process.poll() is not None:
            break
        try:
            server.open("/health", timeout=5).close()
            return
        except OSError:
            time.sleep(0.5)
    raise AssertionError("the server did not come up:\n" + server.log.read_text()[-4000:])


def free_port() -> int:
    """One that nobody listens on now."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def at_once(calls: list[Any], threads: int = 8) -> list[Any]:
    """The results of `calls`, made by several clients at the same time."""
    with ThreadPoolExecutor(threads) as pool:
        return [future.result() for future in [pool.submit(call) for call in calls]]
