"""What is kept of an engine's request ids."""

from __future__ import annotations

import subprocess

import pytest

from moeprof.capture.naming import request_key, request_name
from moeprof.errors import InputError


def test_hashes_are_those_of_openssl() -> None:
    """RFC 4231, test case 2, and an id as vLLM makes them, digested by another program."""
    assert request_name("what do ya want for nothing?", "hashed", b"Jefe") == "5bdcc146bf60754e"
    try:
        done = subprocess.run(
            ["openssl", "dgst", "-sha256", "-hmac", "key"],
            input=b"chatcmpl-1", capture_output=True, check=True,
        )  # fmt: skip
    except FileNotFoundError:
        pytest.skip("needs the command openssl")
    digest = done.stdout.split()[-1].decode()
    assert request_name("chatcmpl-1", "hashed", b"key") == digest[:16]


def test_the_key_is_random_unless_it_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for empty in (None, ""):
        monkeypatch.delenv("MOEPROF_REQUEST_KEY", raising=False)
        if empty is not None:
            monkeypatch.setenv("MOEPROF_REQUEST_KEY", empty)
        keys = {request_key() for _ in range(8)}
        assert len(keys) == 8 and all(len(key) == 32 for key in keys)
    monkeypatch.setenv("MOEPROF_REQUEST_KEY", "ours \udcff")
    assert request_key() == b"ours \xff"


def test_names_are_none_or_plain_when_asked() -> None:
    assert request_name("id", "none", b"") is None
    assert request_name("id", "plain", b"") == "id"
    assert request_name("x" * 10_000, "plain", b"") == "x" * 256
    assert request_name("lone \ud800", "plain", b"") == "lone \\ud800"
    assert request_name("lone \ud800", "hashed", b"k") != request_name("lone", "hashed", b"k")
    with pytest.raises(InputError, match="key of request names is empty"):
        request_name("id", "hashed", b"")
    with pytest.raises(InputError, match="'sha1' is not one of none, hashed, plain"):
        request_name("id", "sha1", b"k")
