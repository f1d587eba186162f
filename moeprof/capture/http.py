"""The one HTTP client: JSON to and from a server, within a deadline and a cap, one line an error.

A server that is asked may be slow, broken or hostile. Whatever it does, a call ends within its
deadline (the time for all of it, not for each read), holds no more than its cap, follows no
redirect and raises an `HttpError`. Tokens are sent to the server that was named and to no other,
and stand in no message.
"""

from __future__ import annotations

import ipaddress
import json
import math
from collections.abc import Awaitable, Callable
from concurrent.futures import CancelledError, Future
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import urlsplit

import anyio
import httpx2
from anyio.from_thread import start_blocking_portal

from moeprof.errors import InputError, MoeprofError

MAX_BYTES = 64 << 20  # of an answer, decompressed
TIMEOUT_S = 30.0
_REASON_BYTES = 16 << 10  # of an answer that refuses
_REASON_CHARS = 300
T = TypeVar("T")


class HttpError(MoeprofError):
    """A server did not answer as asked. The message is one line that names its address.

    `kind` is the same for errors of the same cause, good to count; `status` is the server's, if it
    gave one; `said` is its own explanation; `unsent` is whether it cannot have begun the work.
    """

    def __init__(
        self,
        where: str,
        kind: str,
        remedy: str = "",
        *,
        status: int | None = None,
        said: str = "",
        unsent: bool = False,
    ) -> None:
        self._where = where
        self._remedy = remedy
        self.kind = kind
        self.status = status
        self.said = said
        self.unsent = unsent
        parts = [kind, *([f"the server says: {said}"] if said else []), *([remedy] * bool(remedy))]
        super().__init__(f"{where}: " + "; ".join(parts))

    def without_words(self) -> HttpError:
        """The same, less what the server said."""
        return HttpError(
            self._where, self.kind, self._remedy, status=self.status, unsent=self.unsent
        )


class HttpClient:
    """Speaks to the server at `url`, from any thread, also inside of a running event loop.

    `url` is `http://HOST:PORT`, a path behind it is kept; paths of calls begin with `/`. `token`
    goes along as `Authorization: Bearer`. `timeout_s` is for a whole call, `max_bytes` for an
    answer as it is decompressed; both can be set for a call. Up to `connections` calls run at a
    time. Use as a context manager or `close()`. Raises InputError on an address that is none.
    """

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        timeout_s: float = TIMEOUT_S,
        max_bytes: int = MAX_BYTES,
        connections: int = 16,
    ) -> None:
        self.url = _address(url)
        if not 0 < timeout_s < math.inf:
            raise InputError(f"timeout_s is {timeout_s}, it must be above 0 and have an end")
        self._timeout_s = timeout_s
        self._max_bytes = max_bytes
        headers = {"accept-encoding": "gzip", "accept": "*/*", "user-agent": "moeprof"}
        if token is not None:
            headers["authorization"] = f"Bearer {_checked_token(token)}"
        self._running: set[Future[bytes]] = set()
        self._ended = False
        self._stack = ExitStack()
        self._portal = self._stack.enter_context(start_blocking_portal())
        self._client = httpx2.AsyncClient(
            headers=headers,
            timeout=None,  # ours is for the whole call
            limits=httpx2.Limits(max_connections=connections),
            trust_env=not is_loopback(self.url),  # a proxy is not asked for what is on this machine
        )
        self._stack.callback(self._portal.call, self._client.aclose)

    def get(self, path: str, *, timeout_s: float | None = None) -> Any:
        """The JSON document at `path`. Raises HttpError."""
        return parse_json(self.url + path, self.read("GET", path, timeout_s=timeout_s))

    def post(self, path: str, body: Any = None, *, timeout_s: float | None = None) -> Any:
        """The JSON document that the server answers to `body` with. Raises HttpError."""
        return parse_json(self.url + path, self.read("POST", path, body, timeout_s=timeout_s))

    def read(
        self, method: str, path: str, body: Any = None, *, timeout_s: float | None = None
    ) -> bytes:
        """What the server answers, as it stands. Raises HttpError."""
        try:
            return self.start(method, path, body, timeout_s=timeout_s).result()
        except CancelledError:
            raise HttpError(self.url + path, "the call was ended before its answer") from None

    def start(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        timeout_s: float | None = None,
        max_bytes: int | None = None,
    ) -> Future[bytes]:
        """Begin a call without waiting for it. `cancel()` of the future ends it."""
        url = self.url + path
        limit_s = self._timeout_s if timeout_s is None else timeout_s
        cap = self._max_bytes if max_bytes is None else max_bytes

        async def call() -> bytes:
            return await _guarded(
                lambda: self._exchange(method, url, body, cap), url, max(limit_s, 0.0)
            )

        future = self._portal.start_task_soon(call)
        self._running.add(future)
        future.add_done_callback(self._running.discard)
        if self._ended:
            future.cancel()
        return future

    def cancel(self) -> None:
        """End what runs and what is begun from now on: whoever waits for it gets an HttpError."""
        self._ended = True
        for future in list(self._running):
            future.cancel()

    def close(self) -> None:
        """End what runs, close every connection."""
        self.cancel()
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    async def _exchange(self, method: str, url: str, body: Any, max_bytes: int) -> bytes:
        content = None if body is None else json.dumps(body, allow_nan=False).encode()
        headers = {} if body is None else {"content-type": "application/json"}
        request = self._client.stream(method, url, content=content, headers=headers)
        async with request as response:
            if response.is_redirect:
                raise _redirected(url, response)
            if not response.is_success:
                raise await _refused(url, response)
            return await _body(url, response, max_bytes)


def parse_json(url: str, content: bytes) -> Any:
    """The JSON document that the server at `url` sent. Raises HttpError."""
    try:
        return json.loads(content, parse_constant=_no_number)
    except (ValueError, RecursionError):  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        raise HttpError(
            url, "answers with something that is no JSON", "is this the engine's own address?"
        ) from None


def is_loopback(url: str) -> bool:
    """Whether `url` names this machine by a loopback address."""
    host = urlsplit(url).hostname or ""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


async def _guarded(call: Callable[[], Awaitable[T]], url: str, timeout_s: float) -> T:
    """What `call` returns within the time it has; whatever else it does is an HttpError."""
    try:
        with anyio.fail_after(timeout_s):
            return await call()
    except TimeoutError:
        raise HttpError(
            url, f"no whole answer within {timeout_s:g} s", "is the server up, or too busy?"
        ) from None
    except httpx2.ConnectError as error:
        reason = _first_line(str(error)) or "no connection"
        raise HttpError(
            url, f"cannot connect ({reason})", "is the server running there?", unsent=True
        ) from None
    except httpx2.DecodingError:
        raise HttpError(url, "answers with broken compression") from None
    except (httpx2.HTTPError, httpx2.StreamError, OSError) as error:
        reason = _first_line(str(error)) or type(error).__name__
        raise HttpError(url, f"the connection broke ({reason})") from None


async def _body(url: str, response: httpx2.Response, max_bytes: int) -> bytes:
    """The whole answer. Compressed or not, no more than the cap and a piece is ever held."""
    encoding = response.headers.get("content-encoding", "identity").lower()
    if encoding not in ("identity", "gzip", "deflate"):
        raise HttpError(url, "answers in a compression that was not asked for")
    too_large = HttpError(
        url, f"the answer is larger than {max_bytes:,} bytes", "ask for less, or raise the limit"
    )
    length = response.headers.get("content-length", "")
    if encoding == "identity" and length.isdecimal() and int(length[:20]) > max_bytes:
        raise too_large
    pieces, size = [], 0
    async for piece in response.aiter_bytes():
        size += len(piece)
        if size > max_bytes:
            raise too_large
        pieces.append(piece)
    return b"".join(pieces)


async def _refused(url: str, response: httpx2.Response) -> HttpError:
    """What to say of a status that is no success, with the server's own words if it has any."""
    status = response.status_code
    try:
        said = _explanation(await _body(url, response, _REASON_BYTES))
    except (HttpError, httpx2.HTTPError):  # the status stands, whatever became of the words
        said = ""
    remedies = {
        401: "it wants a token",
        403: "it wants another token",
        404: "it has no such endpoint",
        429: "it is too busy",
        503: "it is not ready",
    }
    return HttpError(
        url,
        f"HTTP {status}",
        remedies.get(status, ""),
        status=status,
        said=said,
        unsent=status in (429, 503),
    )


def _redirected(url: str, response: httpx2.Response) -> HttpError:
    target = _first_line(response.headers.get("location", ""))
    parts = urlsplit(target)
    target = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
    return HttpError(
        url,
        f"redirects to {target or 'nowhere'}",
        "redirects are not followed, give the address itself",
        status=response.status_code,
    )


def _explanation(content: bytes) -> str:
    """The message in an error as engines send it, in one line."""
    try:
        document = json.loads(content)
    except (ValueError, RecursionError):
        return ""
    for key in ("error", "message", "detail"):
        if isinstance(document, dict) and key in document:
            document = document[key]
    return _first_line(document) if isinstance(document, str) else ""


def _first_line(text: str) -> str:
    """`text` as one line of printable characters, shortened."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= _REASON_CHARS else line[:_REASON_CHARS] + "..."


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no JSON")


def _address(url: str) -> str:
    """`url` without its last slash. InputError unless it is an address of HTTP."""
    try:
        parts = urlsplit(url)
        known = parts.scheme in ("http", "https") and bool(parts.hostname)
        bare = not (parts.query or parts.fragment or parts.username or parts.password)
        httpx2.URL(url)
        _ = parts.port
    except (ValueError, httpx2.InvalidURL):
        known = bare = False
    if not known:
        raise InputError(f"{url.rpartition('@')[2]!r} is no address: give http://HOST:PORT")
    if not bare:
        raise InputError("an address is http://HOST:PORT, without a user, a query or a fragment")
    return url.rstrip("/")


def _checked_token(token: str) -> str:
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise InputError("the token is empty or holds characters that no header can carry")
    return token
