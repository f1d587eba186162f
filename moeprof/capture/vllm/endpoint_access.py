"""Who may switch a recording over HTTP, and where it may write.

vLLM's own `--api-key` guards paths below /v1, /v2, /inference and /cohere alone
(vllm/entrypoints/serve/middleware/authenticate.py), so these routes guard themselves. Without a
token only a program on this machine is answered: its connection comes from a loopback address, no
proxy has handed it on, and no page in a browser sent it, neither from another site (`Origin`,
`Sec-Fetch-Site`) nor under a name that was made to point here (`Host`).
"""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv6Address, ip_address
from pathlib import Path

TOKEN_VARIABLE = "MOEPROF_TOKEN"
FOLDER_VARIABLE = "MOEPROF_OUTPUT_DIR"

# What proxies add. One alone is enough: a loopback peer is then the proxy, not the caller.
FORWARDING = (
    "forwarded",
    "via",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-proto",
    "x-forwarded-port",
    "x-forwarded-server",
    "x-real-ip",
    "x-client-ip",
    "x-cluster-client-ip",
    "x-original-forwarded-for",
    "x-envoy-external-address",
    "true-client-ip",
    "cf-connecting-ip",
    "fly-client-ip",
)


class RefusedError(Exception):
    """A request is turned down: an HTTP status, and why in one sentence."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


@dataclass(frozen=True)
class Caller:
    """Where a request came from, and its headers by lower-case name."""

    peer: str | None  # address of the other end; None for a Unix socket
    headers: Mapping[str, str]

    @property
    def is_local(self) -> bool:
        """Whether this is a program on this machine, as far as one can see."""
        headers = self.headers
        return (
            _is_loopback(self.peer or "")
            and not any(name in headers for name in FORWARDING)
            and "origin" not in headers
            and headers.get("sec-fetch-site", "none") == "none"
            and _is_loopback_name(headers.get("host", ""))
        )


@dataclass(frozen=True)
class Access:
    """What the operator of the server allows."""

    token: str | None = field(default=None, repr=False)
    folder: Path | None = None  # below which callers from elsewhere may write

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Access:
        """As `MOEPROF_TOKEN` and `MOEPROF_OUTPUT_DIR` have it; empty is not set."""
        folder = environment.get(FOLDER_VARIABLE, "").strip()
        token = environment.get(TOKEN_VARIABLE, "").strip()
        return cls(token or None, Path(folder) if folder else None)

    def admit(self, caller: Caller) -> None:
        """Raises RefusedError, status 403, if `caller` may not use these routes."""
        if self.token is None:
            if not caller.is_local:
                raise RefusedError(
                    403,
                    "only programs on the server's own machine may switch its recording; for "
                    f"others, start the server with {TOKEN_VARIABLE} and send that token",
                )
        elif not _same(_bearer(caller.headers), self.token):
            raise RefusedError(
                403, f"this needs the header 'Authorization: Bearer TOKEN' with {TOKEN_VARIABLE}"
            )

    def output_path(self, output: str, caller: Caller) -> str:
        """The absolute path for `output`. Raises RefusedError where it may not be written.

        What is relative lies below the operator's folder. A caller from elsewhere may write
        nowhere but there, links followed.
        """
        if self.folder is None and not (caller.is_local and os.path.isabs(output)):
            raise RefusedError(*self._no_folder(caller))
        path = os.path.realpath(os.path.join(self.folder or "/", output))
        if not caller.is_local and self.folder is not None:
            inside = os.path.realpath(self.folder)
            if os.path.commonpath([path, inside]) != inside or path == inside:
                raise RefusedError(
                    403, f"output {output!r} does not lie below {FOLDER_VARIABLE} of the server"
                )
        return path

    def _no_folder(self, caller: Caller) -> tuple[int, str]:
        if caller.is_local:
            return 400, "output: give an absolute path, the server runs in a folder of its own"
        return 403, (
            "a caller from another machine may write only below a folder that the server was "
            f"started with: {FOLDER_VARIABLE}=FOLDER"
        )


def _same(given: str, expected: str) -> bool:
    """Whether the two are equal, in a time that does not tell how nearly."""
    return hmac.compare_digest(*(hashlib.sha256(t.encode()).digest() for t in (given, expected)))


def _bearer(headers: Mapping[str, str]) -> str:
    scheme, _, token = headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


def _is_loopback(address: str) -> bool:
    try:
        parsed = ip_address(address)
    except ValueError:
        return False
    mapped = parsed.ipv4_mapped if isinstance(parsed, IPv6Address) else None
    return (mapped or parsed).is_loopback


def _is_loopback_name(host: str) -> bool:
    """Whether a Host header names this machine: 'localhost:8000', '127.0.0.1', '[::1]:8000'."""
    name = host.strip().lower()
    if name.startswith("["):
        return _is_loopback(name[1:].partition("]")[0])
    name = name.partition(":")[0]
    return name == "localhost" or _is_loopback(name)
