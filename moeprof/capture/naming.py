"""What a recording keeps of the id by which an engine knows a request."""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets

from moeprof.errors import InputError
from moeprof.trace.schema import RequestNames

KEY_VARIABLE = "MOEPROF_REQUEST_KEY"
HASH_DIGITS = 16
MAX_CHARACTERS = 256  # the id may be the client's, and of any length


def request_key() -> bytes:
    """The key of one recording's hashes: what `MOEPROF_REQUEST_KEY` holds, random without it.

    Under the same key the same id has the same hash in every recording.
    """
    given = os.environ.get(KEY_VARIABLE, "")
    return given.encode(errors="surrogateescape") or secrets.token_bytes(32)


def request_name(engine_id: str, mode: str, key: bytes) -> str | None:
    """What stands in `Request.name` for the engine's `engine_id`.

    `mode` none: None. hashed: the first 16 hexadecimal digits of HMAC-SHA-256 (RFC 2104) of the id
    under `key`. plain: the id, at most 256 characters of it. Raises InputError for another mode,
    or on an empty key, under which whoever knows the ids could make the hashes.
    """
    kind = RequestNames.parse(mode)
    if kind is RequestNames.NONE:
        return None
    told = engine_id.encode(errors="backslashreplace")
    if kind is RequestNames.PLAIN:
        return told.decode()[:MAX_CHARACTERS]
    if not key:
        raise InputError(f"the key of request names is empty: set {KEY_VARIABLE}, or leave it out")
    return hmac.new(key, told, hashlib.sha256).hexdigest()[:HASH_DIGITS]
